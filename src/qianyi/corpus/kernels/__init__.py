"""Pure functions on Arrow string buffers, compiled by numba: no engine, no file."""

from importlib import import_module

from qianyi.imports import without

with without("scipy"):  # of which numba takes BLAS, for products of matrices; here there are none, and scipy.linalg takes 0.7 s
    import_module("numba.np.arraymath")
