"""The kernels, as ``torch.autograd.Function`` ops behind plain functions."""

from sparse_xmc.ops.init_indices import init_indices
from sparse_xmc.ops.linear import fixed_fan_in_linear

__all__ = ["fixed_fan_in_linear", "init_indices"]
