"""How the ranks of a label-sharded head share the rows of a batch: each has its own, or all have the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.targets import ExchangedTargets, exchange_targets, shared_targets
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.ops._arguments import FLOAT_DTYPES, Targets, check_float, check_input, check_tensor


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


class _GatherRows(torch.autograd.Function):
    """``[own rows, D]`` to the rows of all ranks. Backward is a reduce-scatter: each rank gets its rows' gradient,
    summed over the ranks in their order in float32 (float64 for float64) and rounded once, times ``scale``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, counts: list[int], scale: float) -> Tensor:
        ctx.ranks, ctx.counts, ctx.scale = ranks, counts, scale
        return ranks.gather_rows(x, counts, "all-gather of the embeddings").view(-1, x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.ranks.send_rows(dx, ctx.counts, "reduce-scatter of the embeddings' gradient")
        wide = torch.float64 if dx.dtype == torch.float64 else torch.float32
        return (parts.sum(0, dtype=wide) * ctx.scale).to(dx.dtype), None, None, None


class OwnRows:
    """Every rank has rows of its own, perhaps none, and computes its labels for the rows of all ranks.

    ``counts``: rows that each rank contributes. ``scale``: of the gradient that comes back.
    """

    def __init__(self, ranks: Ranks, scale: float) -> None:
        self.ranks, self.scale = ranks, scale
        self._agreed: set[tuple[torch.dtype, bool]] = set()

    def check(self, x: Tensor, shard: FixedFanInLinear) -> None:
        """Raises what is wrong with this rank's ``x``, before anything is sent."""
        check_float("x", x)
        check_tensor("shard.weight", shard.weight)
        if x.ndim != 2 or x.shape[1] != shard.in_features:
            raise ValueError(f"x must be [own rows, in_features={shard.in_features}], got shape {list(x.shape)}")
        if x.device != shard.weight.device:
            raise ValueError(f"x must be on the head's device {shard.weight.device}, got {x.device}")

    def meet(self, x: Tensor, shard: FixedFanInLinear, counts: list[int] | None = None) -> list[int]:
        """``counts``, asked for where they are not known.

        The ranks' ``x`` are compared when dtype or gradient change, for they change on all ranks at once.
        """
        if counts is None:
            counts = [count for (count,) in self.ranks.gather_integers([len(x)], "exchange of the batch's sizes")]
        if len(x) != counts[self.ranks.rank]:
            raise ValueError(
                f"x and targets must have the same rows: x has {len(x)}, targets {counts[self.ranks.rank]}"
            )
        needs_gradient = x.requires_grad and torch.is_grad_enabled()
        if (x.dtype, needs_gradient) in self._agreed:
            return counts
        dtypes = list(FLOAT_DTYPES)
        mine = [dtypes.index(x.dtype), needs_gradient, _digest(shard.weight)]
        said = self.ranks.gather_integers(mine, "check of the embeddings' dtype")
        if any(one[:2] != said[0][:2] for one in said):
            text = [f"{dtypes[dtype]}, requires_grad={bool(grad)}" for dtype, grad, _ in said]
            raise ValueError(f"x must have the same dtype and requires_grad on every rank, got {text}")
        if self.ranks.size > 1 and mine[2] and all(one[2] == mine[2] for one in said):
            raise ValueError(
                "all ranks hold the same weights for their different labels, as under DDP or FSDP: wrap the encoder, and "
                "leave the head's parameters and buffers out"
            )
        self._agreed.add((x.dtype, needs_gradient))
        return counts

    def spread(self, x: Tensor, counts: list[int]) -> Tensor:
        """The rows of all ranks; their gradient comes back."""
        return _GatherRows.apply(x, self.ranks, counts, self.scale)

    def of_all(self, mine: Tensor, counts: list[int], what: str) -> Tensor:
        """Something of this rank's rows, of the rows of all ranks; without gradient."""
        return self.ranks.gather_rows(mine, counts, what)

    def exchange(self, targets: Targets, labels: range, out_features: int) -> ExchangedTargets:
        return exchange_targets(targets, self.ranks, labels, out_features)

    def candidates(self, found: Tensor, counts: list[int], what: str) -> Tensor:
        """``[sum(counts), k]`` of this rank's labels to ``[ranks, own rows, k]`` of all labels for this rank's rows."""
        return self.ranks.send_rows(found, counts, what)

    def logits(self, shard: FixedFanInLinear, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """What ``forward`` returns; ``sizes``: labels of each rank."""
        return shard(self.spread(x, self.meet(x, shard)))


class _SumGradient(torch.autograd.Function):
    """The identity; its gradient is summed over the ranks, times ``scale``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks, scale: float) -> Tensor:
        ctx.ranks, ctx.scale = ranks, scale
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.ranks.sum_(dx.clone(), "sum of the embeddings' gradient") * ctx.scale, None, None


class SharedRows:
    """Every rank has the same rows, as where each runs the same encoder; only what grows with the labels is spread.

    Methods as those of ``OwnRows``.
    """

    def __init__(self, ranks: Ranks, scale: float) -> None:
        self.ranks, self.scale = ranks, scale

    def check(self, x: Tensor, shard: FixedFanInLinear) -> None:
        check_input(x, shard.in_features)

    def meet(self, x: Tensor, shard: FixedFanInLinear, counts: list[int] | None = None) -> list[int]:
        return [x.shape[:-1].numel()]

    def spread(self, x: Tensor, counts: list[int]) -> Tensor:
        return _SumGradient.apply(x, self.ranks, self.scale) if x.layout == torch.strided else x

    def of_all(self, mine: Tensor, counts: list[int], what: str) -> Tensor:
        return mine

    def exchange(self, targets: Targets, labels: range, out_features: int) -> ExchangedTargets:
        return shared_targets(targets, self.ranks, labels, out_features)

    def candidates(self, found: Tensor, counts: list[int], what: str) -> Tensor:
        return self.ranks.gather_rows(found[None], [1] * self.ranks.size, what)

    def logits(self, shard: FixedFanInLinear, x: Tensor, sizes: Sequence[int]) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("logits of all ranks have no gradient: train with loss(), predict under no_grad()")
        return self.ranks.gather_rows(shard(x).movedim(-1, 0), sizes, "all-gather of the logits").movedim(0, -1)


SHARINGS: dict[str, type[OwnRows] | type[SharedRows]] = {"own": OwnRows, "shared": SharedRows}


def _digest(weight: Tensor) -> int:
    """A number that differs for different weights, but for chance; 0 where all are equal, as at the start of a training."""
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    bits = weight.detach().view(kind)
    low, high = bits.aminmax()
    return int(bits.sum(dtype=torch.int64)) if low != high else 0
