"""Thin modules over the ops."""

from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.sparsify import sparsify_

__all__ = ["FixedFanInLinear", "sparsify_"]
