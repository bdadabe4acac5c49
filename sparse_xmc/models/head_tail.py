"""Heads over labels ordered by frequency: dense for all of them, or dense for the first and fixed fan-in for
the rest."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc import ops
from sparse_xmc.models.label_changes import ChangeableLabels, check_added, check_change, kept_labels
from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.losses import logits_loss
from sparse_xmc.models.prior import InitialBias, bias_of_labels, fill_bias_, log_odds, set_prior_
from sparse_xmc.models.sparse_rows import csr_columns
from sparse_xmc.models.topk import check_k, exclusions, head_topk, merge_topk, topk_by_rows, topk_with_few_left
from sparse_xmc.ops._arguments import as_int, check_input, check_positive_int
from sparse_xmc.ops._objective import divisor, whole_weight
from sparse_xmc.ops._target_forms import excluded_labels
from sparse_xmc.ops._targets import sorted_positives
from sparse_xmc.ops.topk import sorted_exclusions


class DenseLinear(ChangeableLabels, nn.Linear):
    """``nn.Linear`` with the interface of a head: the rival that sparse heads are compared with.

    Args:
        in_features, out_features, bias, device, dtype, seed, prior: as in ``FixedFanInLinear``.

    Examples:
        >>> import torch
        >>> from sparse_xmc import DenseLinear
        >>> head = DenseLinear(16, 100, prior=2, seed=0)
        >>> head.reset_parameters(seed=1)
        >>> x = torch.randn(2, 16)
        >>> head.loss(x, [[4, 7], [99]]).backward()
        >>> head.topk(x, k=5)[1].shape
        torch.Size([2, 5])
        >>> head.add_labels_(10)
        >>> head.remove_labels_([0, 1])
        >>> head.num_bytes()  # 108 labels of 16 weights and a bias
        7344
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
        super().__init__(as_int(in_features), as_int(out_features), bias, device, dtype)
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
            self.weight.uniform_(-bound, bound, generator=torch.Generator(self.weight.device).manual_seed(as_int(seed)))
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

    @torch.no_grad()
    def topk(self, x: Tensor, k: int, *, exclude: ops.Targets | None = None) -> tuple[Tensor, Tensor]:
        """``(scores, labels) [..., k]`` of ``x [..., in_features]``, best first; ``exclude`` as in the sparse layers."""
        check_input(x, self.in_features)
        k = check_k(k, self.out_features)
        exclude = exclusions(exclude, x, self.out_features)
        rows = x.reshape(-1, self.in_features)
        return topk_by_rows(lambda start, stop: self(rows[start:stop]), x.shape[:-1], k, exclude)

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

    Examples:
        >>> import torch
        >>> from sparse_xmc import HeadTailLinear
        >>> head = HeadTailLinear(16, 1000, fan_in=8, num_head=50, seed=0)  # labels 0 to 49 are dense
        >>> x = torch.randn(2, 16)
        >>> head.loss(x, [[4, 700], [99]]).backward()
        >>> head.topk(x, k=5)[1].shape
        torch.Size([2, 5])
        >>> head.num_bytes() == head.head.num_bytes() + head.tail.num_bytes()
        True
        >>> head.add_labels_(10)  # to the tail
        >>> head.remove_labels_([0, 1009])
        >>> head.out_features
        1008
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
        in_features, out_features, num_head = as_int(in_features), as_int(out_features), as_int(num_head)
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
        if loss in ("cross_entropy", "sampled_softmax"):
            raise ValueError(
                f"a head in two parts has no softmax over all labels: loss={loss!r} needs FixedFanInLinear"
            )
        head, tail = self._parts(x)
        rows, start, stop = x.numel() // self.in_features, self.num_head, self.out_features
        divided = divisor(reduction, rows, stop)
        positives = sorted_positives(targets, rows, stop, self.head.weight.device)
        of_head, of_tail = options, options
        if options.get("pos_weight") is not None:
            weight = whole_weight("pos_weight", options["pos_weight"], stop)
            of_head, of_tail = {**options, "pos_weight": weight[:start]}, {**options, "pos_weight": weight[start:]}
        total = self.head.loss(head, positives.block(0, start), loss=loss, reduction="sum", **of_head)
        of_rest = self.tail.loss(tail, positives.block(start, stop), loss=loss, reduction="sum", **of_tail)
        return (total + of_rest) / divided

    @torch.no_grad()
    def topk(self, x: Tensor, k: int, *, exclude: ops.Targets | None = None) -> tuple[Tensor, Tensor]:
        """``(scores, labels) [..., k]``, best first, without the tail's logits in memory.

        ``exclude``: labels not to return, in any form of targets. Where it leaves a row fewer than ``k`` labels of the tail,
        the tail's logits are made, a few rows at a time.
        """
        k = check_k(k, self.out_features)
        head, tail = self._parts(x)
        # not the tail's own number of labels, which is a rank's where they are spread over several
        tail_labels = self.out_features - self.num_head
        of_head, of_tail = min(k, self.num_head), min(k, tail_labels)
        if exclude is None:
            parts = [self.head.topk(head, of_head), head_topk(self.tail, tail, of_tail)]
        else:
            exclude = excluded_labels(exclude, x.shape[:-1].numel(), self.out_features, x.device)
            sorted_exclusions(exclude, x.numel() // self.in_features, self.out_features, k)
            parts = [
                topk_with_few_left(self.head, head, of_head, csr_columns(exclude, 0, self.num_head), self.num_head),
                topk_with_few_left(
                    self.tail, tail, of_tail, csr_columns(exclude, self.num_head, self.out_features), tail_labels
                ),
            ]
        scores, labels = parts[1]
        return merge_topk([parts[0], (scores, labels + self.num_head)], k)

    @torch.no_grad()
    def add_labels_(
        self,
        num_labels: int,
        x: Any = None,
        targets: Any = None,
        *,
        prior: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        seed: int | None = None,
    ) -> None:
        """Puts new labels behind those there are, as ``FixedFanInLinear.add_labels_``: into the tail, however frequent."""
        num_labels, targets = check_added(num_labels, x, targets, self.in_features)
        own = None if x is None else self._parts(x)[1]
        self.tail.add_labels_(num_labels, own, targets, prior=prior, optimizer=optimizer, seed=seed)
        self.out_features += num_labels

    @torch.no_grad()
    def remove_labels_(self, labels: Any, *, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Takes labels out, as ``FixedFanInLinear.remove_labels_``.

        Raises:
            ValueError: also where the head or the tail would keep no label.
        """
        kept = kept_labels(labels, self.out_features)
        gone = torch.ones(self.out_features, dtype=torch.bool, device="cpu")
        gone[kept] = False
        of_head, of_tail = gone[: self.num_head].nonzero().flatten(), gone[self.num_head :].nonzero().flatten()
        if len(of_head) == self.num_head or len(of_tail) == self.tail.out_features:
            name = "head" if len(of_head) == self.num_head else "tail"
            raise ValueError(f"the {name} of a HeadTailLinear keeps at least one label: all of it would go")
        check_change(self.tail)
        kept_labels(of_tail, self.tail.out_features, self.tail.group_size)
        for part, own in ((self.head, of_head), (self.tail, of_tail)):
            if len(own):
                part.remove_labels_(own, optimizer=optimizer)
        self.num_head, self.out_features = self.num_head - len(of_head), len(kept)

    def num_bytes(self) -> int:
        return self.head.num_bytes() + self.tail.num_bytes()
