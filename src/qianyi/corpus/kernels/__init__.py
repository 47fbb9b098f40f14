"""Pure functions on Arrow string buffers, compiled by numba: no engine, no file."""
