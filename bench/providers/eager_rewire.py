"""Rewiring in plain torch: topk, scatter and randint, with what constant fan-in takes on top."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.point import REWIRE_FRACTION, Point
from bench.problem import Problem
from bench.provider import Case, Provider, Unsupported
from bench.weights import EllWeights

_CHUNK_ELEMENTS = 1 << 20  # slots at a time: temporaries in the cache, measured fastest at K=32 on a CPU
_SIGNED = {torch.uint16: torch.int16, torch.int32: torch.int32}  # torch neither compares nor scatters uint16


def _taken(fresh: Tensor, held: Tensor) -> Tensor:
    """Which of ``fresh [N, n]`` are in ``held [N, K]`` or stand further left in their row already."""
    taken = (fresh[:, :, None] == held[:, None, :]).flatten(0, 1).any(1).view(fresh.shape)
    for i in range(1, fresh.shape[1]):
        taken[:, i] |= (fresh[:, :i] == fresh[:, i : i + 1]).any(1)
    return taken


def _draw_free(held: Tensor, count: int, in_features: int) -> Tensor:
    """``[N, count]`` random features, distinct and not held: random numbers, drawn again where they collide."""
    fresh = torch.randint(in_features, (len(held), count), dtype=torch.int32, device=held.device).to(held.dtype)
    rows, part = torch.arange(len(held), device=held.device), fresh
    while True:
        taken = _taken(part, held[rows])
        again = taken.any(1).nonzero()[:, 0]
        if not len(again):
            return fresh
        rows, part, taken = rows[again], part[again], taken[again]
        part[taken] = torch.randint(
            in_features, (int(taken.sum()),), dtype=torch.int32, device=held.device
        ).to(held.dtype)  # fmt: skip
        fresh[rows] = part


class EagerRewire(Provider):
    """Magnitude prune and random regrow in eager torch, rows in chunks: what one writes without a kernel."""

    name = "eager_rewire"
    label = "eager torch rewire"
    colour = "#5254a3"
    modes: Sequence[str] = ("rewire",)

    def unsupported(self, point: Point) -> str | None:
        return "written for one row of indices per label" if point.G != 1 else None

    def predicted_bytes(self, point: Point) -> int:
        return point.L * point.K * (point.itemsize + 4) + (512 << 20)

    def build(self, point: Point, problem: Problem) -> Case:
        number = min(int(REWIRE_FRACTION * point.K), point.D - point.K)
        if number < 1:
            raise Unsupported(f"nothing to rewire at K={point.K}, D={point.D}")
        weights = EllWeights(problem.weight.clone(), problem.indices.clone(), point.D)
        indices = weights.indices.view(_SIGNED[weights.indices.dtype])
        rows = max(1, _CHUNK_ELEMENTS // point.K)

        def run() -> dict[str, Tensor | list[Tensor]]:
            for w, held in zip(weights.weight.split(rows), indices.split(rows), strict=True):
                pruned = w.abs().topk(number, dim=1, largest=False, sorted=False).indices
                held.scatter_(1, pruned, _draw_free(held, number, point.D))
                w.scatter_(1, pruned, 0.0)
            return {"weight": weights.weight, "indices": weights.indices}

        return Case(run, weights)


PROVIDERS = (EagerRewire(),)
