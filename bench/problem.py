"""Inputs of a point: the same for every provider, made on first use, so that a mode pays for what it needs."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from bench.point import POSITIVES_PER_ROW, Point
from sparse_xmc import ops

_DRAWN = 4_194_301  # prime: no two rows of a matrix are alike


class Problem:
    """Random layer, batch and targets of a point, reproducible by its seed."""

    def __init__(self, point: Point, seed: int = 0) -> None:
        self.point, self.seed = point, seed
        self.device = torch.device(point.device)

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed * 16 + stream)

    def at(self, point: Point) -> Problem:
        """The same batch and weights with the topology of another group size."""
        other = Problem(point, self.seed)
        for name in ("x", "weight", "bias", "targets", *(("dy",) if "dy" in self.__dict__ else ())):
            other.__dict__[name] = getattr(self, name)
        return other

    def normal(self, stream: int, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal values; beyond a few million they repeat, since drawing them would take longer than measuring."""
        out = torch.empty(*shape, dtype=self.point.torch_dtype, device=self.device)
        flat = out.view(-1)
        drawn = flat[:_DRAWN].normal_(0.0, scale, generator=self._generator(stream))
        for start in range(_DRAWN, flat.numel(), _DRAWN):
            part = flat[start : start + _DRAWN]
            part.copy_(drawn[: part.numel()])
        return out

    @cached_property
    def x(self) -> Tensor:
        """``[B, D]``"""
        return self.normal(0, self.point.B, self.point.D)

    @cached_property
    def dy(self) -> Tensor:
        """``[B, L]``: the gradient that arrives from above."""
        return self.normal(1, self.point.B, self.point.L)

    @cached_property
    def weight(self) -> Tensor:
        """``[L, K]``"""
        return self.normal(2, self.point.L, self.point.K, scale=self.point.K**-0.5)

    @cached_property
    def indices(self) -> Tensor:
        """``[ceil(L / G), K]``, distinct within a row."""
        p = self.point
        return ops.init_indices(-(-p.L // p.G), p.D, p.K, seed=self.seed, device=self.device)

    @cached_property
    def label_indices(self) -> Tensor:
        """``[L, K]`` int32: the indices of every label, for formats that know no groups."""
        p = self.point
        rows = self.indices.to(torch.int32)
        return rows if p.G == 1 else rows.repeat_interleave(p.G, dim=0)[: p.L].contiguous()

    @cached_property
    def bias(self) -> Tensor | None:
        """``[L]`` in modes with a bias: about the log odds of a rare label."""
        if not self.point.biased:
            return None
        return self.normal(3, self.point.L, scale=0.1).sub_(4.0)

    @cached_property
    def targets(self) -> Tensor:
        """CSR ``[B, L]`` with a few distinct positives in every row."""
        p = self.point
        count = min(POSITIVES_PER_ROW, p.L)
        strata = torch.arange(count, device=self.device) * (p.L // count)
        draw = torch.rand(p.B, count, generator=self._generator(4), device=self.device, dtype=torch.float64)
        labels = strata + (draw * (p.L // count)).long()
        crow = torch.arange(0, p.B * count + 1, count, device=self.device)
        values = torch.ones(p.B * count, device=self.device)
        return torch.sparse_csr_tensor(crow, labels.reshape(-1), values, (p.B, p.L), check_invariants=False)

    @cached_property
    def classes(self) -> Tensor:
        """``[B]`` int64: one positive of every row, for a softmax."""
        return self.targets.col_indices().view(self.point.B, -1)[:, 0].long().contiguous()

    @cached_property
    def positive_rows(self) -> Tensor:
        """Row of every positive, int64; ``targets.col_indices()`` are their labels."""
        count = self.targets.values().numel() // self.point.B
        return torch.arange(self.point.B, device=self.device).repeat_interleave(count)
