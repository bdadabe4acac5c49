"""The kernels, as ``torch.autograd.Function`` ops behind plain functions."""

from sparse_xmc.ops._regrow import RegrowBatch
from sparse_xmc.ops.informed_indices import informed_indices
from sparse_xmc.ops.init_indices import init_indices
from sparse_xmc.ops.linear import fixed_fan_in_linear
from sparse_xmc.ops.prune_regrow import prune_regrow_

__all__ = ["RegrowBatch", "informed_indices", "prune_regrow_", "fixed_fan_in_linear", "init_indices"]
