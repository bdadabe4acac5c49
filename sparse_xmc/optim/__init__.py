"""Optimizers for wide heads: updates inside the loss kernel, and rows of a table that no batch touches left alone."""

from sparse_xmc.optim.fused import FusedAdagrad, FusedAdam, FusedOptimizer, FusedSGD
from sparse_xmc.optim.row_sparse import RowSparseAdagrad

__all__ = ["FusedAdagrad", "FusedAdam", "FusedOptimizer", "FusedSGD", "RowSparseAdagrad"]
