"""Optimizers and learning rates for wide heads: updates inside the loss kernel, rows of a table that no batch touches left
alone, rates by fan-in."""

from sparse_xmc.optim.chained import ChainedOptimizer
from sparse_xmc.optim.fused import FusedAdagrad, FusedAdam, FusedSGD
from sparse_xmc.optim.fused_optimizer import FusedOptimizer
from sparse_xmc.optim.row_sparse import RowSparseAdagrad
from sparse_xmc.optim.scaling import parameter_groups, rate_multiplier

__all__ = [
    "ChainedOptimizer",
    "FusedAdagrad",
    "FusedAdam",
    "FusedOptimizer",
    "FusedSGD",
    "RowSparseAdagrad",
    "parameter_groups",
    "rate_multiplier",
]
