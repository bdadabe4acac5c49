"""Heads over labels ordered by frequency: dense for all of them, or dense for the first and fixed fan-in for
the rest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc import ops
from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.losses import logits_loss
from sparse_xmc.models.prior import InitialBias, bias_of_labels, fill_bias_, log_odds, set_prior_
from sparse_xmc.models.sparse_rows import csr_columns
from sparse_xmc.ops._arguments import check_input, check_positive_int
from sparse_xmc.ops._objective import divisor, whole_weight
from sparse_xmc.ops._target_forms import csr_tensor

TOPK_ROWS = 64  # rows whose logits exist at a time where a head has no top-k of its own


def check_k(k: int, num_labels: int) -> None:
    """Raises unless ``k`` is a number of labels that can be returned."""
    check_positive_int("k", k)
    if k > num_labels:
        raise ValueError(f"k must not exceed the number of labels: k={k}, labels {num_labels}")


def topk_of_logits(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``(scores, labels) [B, k]`` in decreasing order; equal scores by smaller label."""
    check_k(k, logits.shape[1])
    order = torch.sort(logits, dim=1, descending=True, stable=True)
    return order.values[:, :k], order.indices[:, :k]


def head_topk(head: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The head's ``topk``; for a head without one, from the logits of a few rows at a time."""
    if hasattr(head, "topk"):
        return head.topk(x, k=k)
    parts = [topk_of_logits(head(rows), k) for rows in x.split(TOPK_ROWS)]
    return torch.cat([scores for scores, _ in parts]), torch.cat([labels for _, labels in parts])


def merge_topk(parts: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Best ``k`` of several top-k results over disjoint, ascending label ranges."""
    scores = torch.cat([scores for scores, _ in parts], dim=1)
    labels = torch.cat([labels for _, labels in parts], dim=1)
    best = torch.sort(scores, dim=1, descending=True, stable=True)
    return best.values[:, :k], labels.gather(1, best.indices[:, :k])


class DenseLinear(nn.Linear):
    """``nn.Linear`` with the interface of a head: the rival that sparse heads are compared with.

    Args:
        in_features, out_features, bias, device, dtype, seed, prior: as in ``FixedFanInLinear``.
    """

    _initial_bias: InitialBias = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
        prior: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        set_prior_(self, log_odds(prior, out_features))
        if seed is not None and not self.weight.is_meta:
            self.reset_parameters(seed)

    @torch.no_grad()
    def reset_parameters(self, seed: int | None = None) -> None:
        """Draws weights as ``nn.Linear`` does, from torch's global generator or from ``seed``; the bias becomes
        the prior's, or zero."""
        if seed is None:
            super().reset_parameters()
        else:
            bound = 1 / math.sqrt(self.in_features)
            self.weight.uniform_(-bound, bound, generator=torch.Generator(self.weight.device).manual_seed(seed))
        fill_bias_(self, self._initial_bias)

    def loss(
        self,
        x: Tensor,
        targets: ops.Targets,
        *,
        loss: ops.Loss = "bce",
        reduction: ops.Reduction = "mean",
        **options: Any,
    ) -> Tensor:
        """A multi-label loss, with the options of ``ops.fixed_fan_in_loss``; its logits ``[B, L]`` are in memory."""
        return logits_loss(self(x), targets, loss=loss, reduction=reduction, **options)

    def topk(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        return topk_of_logits(self(x), k)

    def num_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())


class HeadTailLinear(nn.Module):
    """A dense layer for the ``num_head`` most frequent labels and a fixed fan-in layer for the tail.

    Labels must be ordered by decreasing frequency on the training split (``models.grouping.group_order``): labels
    ``[0, num_head)`` are the head. Each part reads all of ``x`` or, with ``split``, its own features.

    Args:
        in_features, out_features, fan_in, bias, group_size, device, dtype, seed, prior: as in ``FixedFanInLinear``.
        num_head: labels with a dense row, in ``[1, out_features)``.
        split: number of first features that only the head reads; the tail reads the others. None: both read all.
        tail_device: of the tail's parameters where it is another one; "meta" where its labels are made later, on
            several ranks.

    Source: HASTE, ICML 2026 (head-tail split, private features).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fan_in: int,
        bias: bool = True,
        *,
        num_head: int,
        group_size: int = 1,
        split: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
        tail_device: torch.device | str | None = None,
        prior: Any = None,
    ) -> None:
        super().__init__()
        check_positive_int("num_head", num_head)
        if num_head >= out_features:
            raise ValueError(f"num_head must be below out_features={out_features}, got {num_head}")
        if split is not None and not 0 < split < in_features:
            raise ValueError(f"split must lie in (0, in_features={in_features}), got {split}")
        self.in_features, self.out_features, self.num_head, self.split = in_features, out_features, num_head, split
        self.head = DenseLinear(split or in_features, num_head, bias, device=device, dtype=dtype, seed=seed)
        self.tail = FixedFanInLinear(
            in_features - (split or 0),
            out_features - num_head,
            fan_in,
            bias,
            group_size=group_size,
            device=device if tail_device is None else tail_device,
            dtype=dtype,
            seed=seed,
        )
        initial_bias = log_odds(prior, out_features)
        set_prior_(self.head, bias_of_labels(initial_bias, 0, num_head))
        set_prior_(self.tail, bias_of_labels(initial_bias, num_head, out_features))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_input(x, self.in_features)
        return (x, x) if self.split is None else (x[..., : self.split], x[..., self.split :])

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in_features]`` to logits ``[..., out_features]``, head first."""
        head, tail = self._parts(x)
        return torch.cat([self.head(head), self.tail(tail)], dim=-1)

    def loss(
        self,
        x: Tensor,
        targets: ops.Targets,
        *,
        loss: ops.Loss = "bce",
        reduction: ops.Reduction = "mean",
        **options: Any,
    ) -> Tensor:
        """A multi-label loss over all labels, the tail's part fused; targets and options as in ``FixedFanInLinear.loss``."""
        head, tail = self._parts(x)
        rows, start, stop = x.numel() // self.in_features, self.num_head, self.out_features
        divided = divisor(reduction, rows, stop)
        targets = csr_tensor(targets, rows, stop, self.head.weight.device)
        of_head, of_tail = options, options
        if options.get("pos_weight") is not None:
            weight = whole_weight("pos_weight", options["pos_weight"], stop)
            of_head, of_tail = {**options, "pos_weight": weight[:start]}, {**options, "pos_weight": weight[start:]}
        total = self.head.loss(head, csr_columns(targets, 0, start), loss=loss, reduction="sum", **of_head)
        of_rest = self.tail.loss(tail, csr_columns(targets, start, stop), loss=loss, reduction="sum", **of_tail)
        return (total + of_rest) / divided

    def topk(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """``(scores, labels) [B, k]``, best first, without the tail's logits in memory."""
        check_k(k, self.out_features)
        head, tail = self._parts(x)
        # not the tail's own number of labels, which is a rank's where they are spread over several
        scores, labels = head_topk(self.tail, tail, min(k, self.out_features - self.num_head))
        return merge_topk([self.head.topk(head, min(k, self.num_head)), (scores, labels + self.num_head)], k)

    def num_bytes(self) -> int:
        return self.head.num_bytes() + self.tail.num_bytes()
