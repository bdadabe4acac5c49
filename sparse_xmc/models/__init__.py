"""Thin modules over the ops."""

from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.memory_report import HeadMemory, MemoryReport, memory_report
from sparse_xmc.models.sparsify import sparsify_

__all__ = ["FixedFanInLinear", "HeadMemory", "MemoryReport", "memory_report", "sparsify_"]
