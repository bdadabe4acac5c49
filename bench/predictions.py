"""Times that were predicted for an H100 before any kernel had run on a GPU: from counts, for the report to be held against.

Assumed: 927 G warp instructions/s of issue, of which kernels reach 50 to 70 %, 3.0 TB/s of memory, 5.5 TB/s of L2 reads, 0.6
to 1.2 T float32 additions/s in L2. B=128, D=768, bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.rows import Row


class Prediction(NamedTuple):
    """Milliseconds from ``low`` to ``high``, and what was thought to set the limit."""

    provider: str
    mode: str
    L: int
    K: int
    low: float
    high: float
    limit: str

    def is_of(self, row: Row) -> bool:
        """Whether a row measured this."""
        sizes = (row["provider"], row["mode"], row["L"], row["K"], row["D"], row["B"], row["dtype"], row["device"])
        return sizes == (self.provider, self.mode, self.L, self.K, 768, 128, "bfloat16", "cuda")


PREDICTIONS = (
    Prediction("sparse_xmc", "forward", 670_091, 64, 1.0, 2.0, "issue, then misses of the x slab in L1"),
    Prediction("sparse_xmc_fused", "step", 670_091, 64, 5.0, 9.0, "issue and atomic additions"),
    Prediction("sparse_xmc_group32", "forward", 670_091, 64, 0.10, 0.13, "writing y"),
    Prediction("sparse_xmc_group32", "full", 670_091, 64, 0.35, 0.53, "writing y, reading dy, atomic additions"),
    Prediction("sparse_xmc_group32_fused", "step", 670_091, 64, 0.20, 0.45, "atomic additions, then issue"),
    Prediction("sparse_xmc_group32_fused", "topk", 670_091, 64, 0.15, 0.20, "ranking the tiles' maxima"),
    Prediction("sparse_xmc_group32_fused", "step", 2_812_281, 128, 2.0, 2.8, "issue and atomic additions"),
    Prediction("sparse_xmc", "rewire", 2_812_281, 128, 20.0, 35.0, "issue: fan-in times draws comparisons"),
    Prediction("dense", "step", 670_091, 64, 2.5, 3.0, "memory: 7 GB of weights, gradients and logits"),
)
