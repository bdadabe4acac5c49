"""What a topology does during training: who is replaced, what has been tried, which inputs are used, how large weights are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_xmc.models.linear import FixedFanInLinear

MAGNITUDE_BINS = 64  # per-octave histogram of |w|, from 2^-40 up


@dataclass(frozen=True)
class TopologyStatistics:
    """One look at a layer.

    share_rewired: slots replaced since the last look, as a share of all.
    exploration: in-time over-parameterisation: distinct connections that the watched rows ever held, as a share of all
        ``rows * D`` they could have held (Liu et al., ICML 2021).
    feature_usage: ``[D]`` int64, how many rows read each input.
    magnitudes: ``[64]`` int64, number of weights with ``2^(i - 40) <= |w| < 2^(i - 39)``; the ends take what lies beyond.
    """

    share_rewired: float
    exploration: float
    feature_usage: Tensor
    magnitudes: Tensor

    def row(self) -> dict[str, Any]:
        """As numbers and lists, for a line of JSON."""
        return {
            "share_rewired": self.share_rewired,
            "exploration": self.exploration,
            "feature_usage": self.feature_usage.tolist(),
            "magnitudes": self.magnitudes.tolist(),
        }


class TopologyObserver:
    """Watches a layer's topology within a fixed amount of memory.

    Visited connections are one byte each for ``watched_rows`` evenly spaced rows (``watched_rows * D`` bytes: 0.8 MB for
    1,024 rows of 768), an unbiased sample, as rows rewire alike. Call ``record`` after each rewiring: it costs a copy
    of those rows. ``statistics`` reads weights and indices once, in blocks, and waits for the device.
    """

    def __init__(self, layer: FixedFanInLinear, *, watched_rows: int = 1024) -> None:
        if watched_rows < 1:
            raise ValueError(f"watched_rows must be at least 1, got {watched_rows}")
        self.layer = layer
        R, device = layer.indices.shape[0], layer.indices.device
        self.rows = torch.linspace(0, R - 1, min(watched_rows, R), device=device).long()
        self.visited = torch.zeros(len(self.rows), layer.in_features, dtype=torch.bool, device=device)
        self.rewired = torch.zeros((), dtype=torch.int64, device=device)
        self.record()

    def record(self, rewired: Tensor | None = None) -> None:
        """Notes the connections held now; ``rewired`` is what ``rewire_`` returned."""
        self.visited.scatter_(1, self.layer.indices[self.rows].long(), True)
        if rewired is not None:
            self.rewired += rewired

    def statistics(self) -> TopologyStatistics:
        """A look at the layer; the count of replaced slots starts again from zero."""
        share = int(self.rewired) / self.layer.indices.numel()
        self.rewired.zero_()
        return TopologyStatistics(
            share, float(self.visited.float().mean()), feature_usage(self.layer), magnitudes(self.layer.weight)
        )


def feature_usage(layer: FixedFanInLinear, *, block: int = 1 << 22) -> Tensor:
    """``[D]`` int64: how many rows of indices read each input."""
    usage = torch.zeros(layer.in_features, dtype=torch.int64, device=layer.indices.device)
    for part in layer.indices.flatten().split(block):
        usage += torch.bincount(part.long(), minlength=layer.in_features)
    return usage


@torch.no_grad()
def magnitudes(weight: Tensor, *, block: int = 1 << 22) -> Tensor:
    """``[64]`` int64: number of weights per octave of |w|; zeros count in the first."""
    counts = torch.zeros(MAGNITUDE_BINS, dtype=torch.int64, device=weight.device)
    for part in weight.detach().flatten().split(block):
        _, exponent = torch.frexp(part.float())
        octave = (exponent.long() + 39).clamp(0, MAGNITUDE_BINS - 1).masked_fill(part == 0, 0)
        counts += torch.bincount(octave, minlength=MAGNITUDE_BINS)
    return counts


def plot_topology(path: str, rows: list[dict[str, Any]]) -> None:
    """Draws rows of ``TopologyStatistics.row`` (with an optional "step") to a figure: needs matplotlib."""
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("rows must hold at least one look at the topology, got none")
    steps = [row.get("step", i) for i, row in enumerate(rows)]
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    axes[0, 0].plot(steps, [100 * row["share_rewired"] for row in rows], marker=".")
    axes[0, 0].set(title="slots replaced since the last look", xlabel="step", ylabel="%")
    axes[0, 1].plot(steps, [100 * row["exploration"] for row in rows], marker=".")
    axes[0, 1].set(title="distinct connections visited", xlabel="step", ylabel="% of R x D")
    for row, name in ((rows[0], "first"), (rows[-1], "last")):
        axes[1, 0].plot(sorted(row["feature_usage"], reverse=True), label=name)
        octaves = [i - 40 for i in range(MAGNITUDE_BINS)]
        axes[1, 1].step(octaves, row["magnitudes"], where="mid", label=name)
    axes[1, 0].set(title="rows that read an input", xlabel="inputs, most used first", ylabel="rows")
    axes[1, 1].set(title="weights per octave", xlabel="log2 |w|", ylabel="weights", xlim=(-30, 8))
    for axis in axes[1]:
        axis.legend()
    figure.savefig(path, dpi=120)
