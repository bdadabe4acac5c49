"""Numba kernels for CPU tensors, one module per op."""
