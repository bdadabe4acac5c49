"""Autograd through the collectives: batch rows to every rank and their gradients back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_xmc.distributed.ranks import Ranks


class GatherRows(torch.autograd.Function):
    """``[own rows, D]`` to the rows of all ranks. Backward is a reduce-scatter: each rank gets its rows' gradient,
    summed over the ranks in their order in float32 (float64 for float64) and rounded once, times ``scale``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, rows: list[int], scale: float) -> Tensor:
        ctx.ranks, ctx.rows, ctx.scale = ranks, rows, scale
        return ranks.gather_rows(x, rows, "all-gather of the embeddings").view(-1, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.ranks.send_rows(dx, ctx.rows, "reduce-scatter of the embeddings' gradient")
        wide = torch.float64 if dx.dtype == torch.float64 else torch.float32
        return (parts.sum(0, dtype=wide) * ctx.scale).to(dx.dtype), None, None, None


class SumOverRanks(torch.autograd.Function):
    """A scalar that each rank holds a part of, summed. The gradient of the sum is the gradient of every part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, *dimensions: Ranks) -> Tensor:
        total = part.clone()
        for ranks in dimensions:
            ranks.sum_(total, "sum of the loss")
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient, *[None] * (len(ctx.needs_input_grad) - 1)
