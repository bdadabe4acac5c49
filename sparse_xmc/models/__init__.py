"""Thin modules over the ops."""

from sparse_xmc.models.linear import FixedFanInLinear

__all__ = ["FixedFanInLinear"]
