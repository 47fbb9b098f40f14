"""Qianyi 千亿: train language models of 100 billion parameters and more, proven before the cluster is rented."""

__version__ = "0.1.0"
