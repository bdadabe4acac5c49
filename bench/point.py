"""What is measured: points of the sweep and modes with the work they stand for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

# What one call of a mode has to produce. A provider that produces anything else is refused, so that a speed-up always
# compares equal work: y [B, L]; dx [B, D]; dw the gradient of every weight; loss, the sum over labels averaged over
# rows (of softmax: the mean of the rows' cross-entropies); weight the updated parameters (of a rewired layer, with its
# indices); scores and labels [B, k].
WORK: dict[str, frozenset[str]] = {
    "forward": frozenset({"y"}),
    "backward_input": frozenset({"dx"}),
    "backward_weight": frozenset({"dw"}),
    "full": frozenset({"y", "dx", "dw"}),
    "step": frozenset({"loss", "dx", "weight"}),
    "softmax": frozenset({"loss", "dx", "dw"}),
    "topk": frozenset({"scores", "labels"}),
    "rewire": frozenset({"weight", "indices"}),
}
MODES = tuple(WORK)
BIASED_MODES = ("step", "softmax", "topk")
TOP_K = 5
LEARNING_RATE = 0.05
POSITIVES_PER_ROW = 5
REWIRE_FRACTION = 0.25


@dataclass(frozen=True)
class Point:
    """One place of a sweep, in the letters of the package: labels, features, fan-in, group size, batch rows."""

    mode: str
    L: int
    D: int = 768
    K: int = 32
    G: int = 1
    B: int = 64
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.mode not in WORK:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("L", "D", "K", "G", "B"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.K > self.D:
            raise ValueError(f"K must not exceed D, got K={self.K}, D={self.D}")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def itemsize(self) -> int:
        return self.torch_dtype.itemsize

    @property
    def biased(self) -> bool:
        """Whether the layer has a bias: where a loss or a ranking is computed; the bare products have none."""
        return self.mode in BIASED_MODES

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.mode} L={self.L:,} D={self.D} K={self.K} G={self.G} B={self.B} {self.dtype} {self.device}"
