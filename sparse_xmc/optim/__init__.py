"""Optimizers for wide heads: updates inside the loss kernel, and rows of a table that no batch touches left alone."""

from sparse_xmc.optim.chained import ChainedOptimizer
from sparse_xmc.optim.fused import FusedAdagrad, FusedAdam, FusedSGD
from sparse_xmc.optim.fused_optimizer import FusedOptimizer
from sparse_xmc.optim.row_sparse import RowSparseAdagrad

__all__ = ["ChainedOptimizer", "FusedAdagrad", "FusedAdam", "FusedOptimizer", "FusedSGD", "RowSparseAdagrad"]
