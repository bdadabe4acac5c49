"""Softmax cross-entropy of a fixed fan-in head, label tile by label tile; no ``[B, L]`` tensor, ever.

The forward streams ``log sum exp`` over tiles of labels; the backward computes a tile's logits again, turns them into
their gradient and passes that to the layer's input and weight gradient kernels. A tile takes ``_TILE_ELEMENTS`` logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import (
    autocast,
    check_constant,
    check_float,
    check_layer,
    check_tensor,
    compute_dtype,
    validate_indices,
)
from sparse_xmc.ops._backend import debugging, kernels
from sparse_xmc.ops._dispatch import define, direct, first_order, plain
from sparse_xmc.ops._target_forms import class_ids

IGNORE_INDEX = -100  # torch's
_TILE_ELEMENTS = 1 << 20

Combine = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


class Softmax(NamedTuple):
    """What of the loss depends on a head's labels.

    smoothing: the share of a row's target that is spread evenly over all labels.
    class_weight: ``[num_classes]`` or None. ignore_index: the target of rows that do not count.
    first_label, num_classes: the head's labels are ``first_label`` and following ones out of ``num_classes``.
    """

    smoothing: float
    class_weight: Tensor | None
    ignore_index: int
    first_label: int
    num_classes: int


def _tiles(B: int, L: int, group_size: int) -> Iterator[slice]:
    """Slices of labels, whole groups each."""
    step = max(1, _TILE_ELEMENTS // max(1, B) // group_size) * group_size
    for start in range(0, L, step):
        yield slice(start, min(start + step, L))


def _rows(tile: slice, group_size: int) -> slice:
    return slice(tile.start // group_size, -(-tile.stop // group_size))


def _logits_by_tile(
    x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None, group_size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(labels of a tile, x as kernels read it, the tile's logits [B, labels])."""
    linear = kernels("linear", x)
    laid_out = linear.lay_out(x)
    for tile in _tiles(x.shape[0], weight.shape[0], group_size):
        part, rows = None if bias is None else bias[tile], indices[_rows(tile, group_size)]
        yield tile, laid_out, linear.forward(x, weight[tile], rows, part, group_size, None, laid_out)


def _statistics(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    class_weight: Tensor | None,
    group_size: int,
    need_sum: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """x [B, D], targets [B] (outside [0, L): none) -> (log sum exp, logit of the target or 0, sum of the (weighted)
    logits if needed, else 0), each [B] in the accumulation dtype."""
    wide = x.to(compute_dtype(x.dtype))
    B = x.shape[0]
    log_sum = wide.new_full((B,), -float("inf"))
    picked, total = wide.new_zeros(B), wide.new_zeros(B)
    for tile, _, logits in _logits_by_tile(wide, weight, indices, bias, group_size):
        log_sum = torch.logaddexp(log_sum, logits.logsumexp(1))
        inside = (targets >= tile.start) & (targets < tile.stop)
        column = torch.where(inside, targets - tile.start, 0)
        picked += torch.where(inside, logits.gather(1, column[:, None])[:, 0], 0)
        if need_sum:
            total += logits.sum(1) if class_weight is None else logits @ class_weight[tile].to(wide.dtype)
    return log_sum, picked, total


softmax_statistics = define(
    "softmax_statistics(Tensor x, Tensor weight, Tensor indices, Tensor? bias, Tensor targets, Tensor? class_weight,"
    " SymInt group_size, bool need_sum) -> (Tensor, Tensor, Tensor)",
    _statistics,
    lambda x, *others: tuple(x.new_empty(x.shape[0], dtype=compute_dtype(x.dtype)) for _ in range(3)),
)


def _gradients(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    class_weight: Tensor | None,
    log_sum: Tensor,
    share: Tensor,
    picked_share: Tensor,
    even_share: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx [B, D], dw [L, K], db [L]) of logits' gradient ``share * softmax - picked_share * [label = target]
    - even_share * class_weight``, where the shares are [B]; empty tensors for what is not needed.

    options: group_size, need_x, need_weight, need_bias, deterministic."""
    group_size, need_x, need_weight, need_bias, deterministic = options
    wide = x.to(compute_dtype(x.dtype))
    dx = torch.zeros_like(wide) if need_x else wide.new_empty(0)
    dw, db = _parameter_gradients(weight, bias, need_weight, need_bias)
    linear = kernels("linear", x)
    for tile, laid_out, logits in _logits_by_tile(wide, weight, indices, bias, group_size):
        dy = logits.sub_(log_sum[:, None]).exp_().mul_(share[:, None])
        if even_share is not None and class_weight is None:
            dy -= even_share[:, None]
        elif even_share is not None and class_weight is not None:
            dy.addr_(even_share, class_weight[tile].to(wide.dtype), alpha=-1)
        inside = (targets >= tile.start) & (targets < tile.stop)
        column = torch.where(inside, targets - tile.start, 0)
        dy.scatter_add_(1, column[:, None], torch.where(inside, -picked_share, 0)[:, None])
        part = indices[_rows(tile, group_size)]
        if need_x:
            dx += linear.backward_input(dy, weight[tile], part, x.shape[1], group_size, deterministic)
        if need_weight:
            dw[tile] = linear.backward_weight(dy, wide, part, group_size, weight.dtype, laid_out)
        if db.numel():
            db[tile] = dy.sum(0).to(db.dtype)
    return dx.to(x.dtype), dw, db


def _parameter_gradients(
    weight: Tensor, bias: Tensor | None, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor]:
    """Room for the gradients of weight and bias, none for those that are not needed."""
    dw = torch.empty_like(weight) if need_weight else weight.new_empty(0)
    return dw, torch.empty_like(bias) if need_bias and bias is not None else weight.new_empty(0)


def _gradients_fake(
    x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, need_x, need_weight, need_bias, _ = others
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0)
    return dx, *_parameter_gradients(weight, bias, need_weight, need_bias)


softmax_gradients = define(
    "softmax_gradients(Tensor x, Tensor weight, Tensor indices, Tensor? bias, Tensor targets, Tensor? class_weight,"
    " Tensor log_sum, Tensor share, Tensor picked_share, Tensor? even_share, SymInt group_size, bool need_x,"
    " bool need_weight, bool need_bias, bool deterministic) -> (Tensor, Tensor, Tensor)",
    _gradients,
    _gradients_fake,
)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        indices: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softmax: Softmax,
        group_size: int,
        combine: Combine | None,
    ) -> Tensor:
        wide = compute_dtype(x.dtype)
        smoothing, class_weight, first = softmax.smoothing, softmax.class_weight, softmax.first_label
        own_weight = None if class_weight is None else class_weight[first : first + weight.shape[0]]
        local = targets - first
        statistics = _statistics if direct(x, weight, indices, targets) else softmax_statistics
        parts = statistics(x, weight, indices, bias, local, own_weight, group_size, smoothing > 0)
        log_sum, picked, total = parts if combine is None else combine(*parts)
        counted = row_weights(targets, softmax, wide)
        mass = (targets != softmax.ignore_index).to(wide)
        if smoothing:
            all_weight = float(softmax.num_classes) if class_weight is None else class_weight.to(wide).sum()
            even = mass * (smoothing / softmax.num_classes)
            losses = (1 - smoothing) * counted * (log_sum - picked) + even * (all_weight * log_sum - total)
            share = (1 - smoothing) * counted + even * all_weight
        else:
            losses, share, even = counted * (log_sum - picked), counted, None
        losses = torch.where(mass > 0, losses, 0)
        ctx.save_for_backward(
            x, weight, indices, bias, local, own_weight, log_sum, share, (1 - smoothing) * counted, even
        )
        ctx.group_size = group_size
        return losses.sum()

    @staticmethod
    @first_order
    def backward(ctx: Any, gradient: Tensor, eager: bool) -> tuple[Tensor | None, ...]:
        *tensors, log_sum, share, picked_share, even = ctx.saved_tensors
        need_x, need_weight, _, need_bias = ctx.needs_input_grad[:4]
        gradients = _gradients if eager and plain(*tensors[:3]) else softmax_gradients
        dx, dw, db = gradients(
            *tensors,
            log_sum,
            share * gradient,
            picked_share * gradient,
            None if even is None else even * gradient,
            ctx.group_size,
            need_x,
            need_weight,
            need_bias,
            torch.are_deterministic_algorithms_enabled(),
        )
        return (dx if need_x else None, dw if need_weight else None, None, db if need_bias else None, *[None] * 4)


def row_weights(targets: Tensor, softmax: Softmax, dtype: torch.dtype) -> Tensor:
    """The class weight of every row's target ``[B]``; 0 for rows that do not count."""
    counts = targets != softmax.ignore_index
    if softmax.class_weight is None:
        return counts.to(dtype)
    weights = softmax.class_weight.to(dtype)[torch.where(counts, targets, 0)]
    return torch.where(counts, weights, 0)


def summed_cross_entropy(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    softmax: Softmax,
    *,
    group_size: int,
    combine: Combine | None = None,
) -> Tensor:
    """The loss summed over rows, of checked arguments.

    combine: turns the statistics of this head's labels into those of all labels where the head is one of several
        shards. Gradients are then those of this head's parameters, and its labels' part of x's.
    """
    return _CrossEntropy.apply(x, weight, indices, bias, targets, softmax, group_size, combine)


def fixed_fan_in_cross_entropy(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    reduction: str = "mean",
    group_size: int = 1,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    class_weight: Tensor | None = None,
) -> Tensor:
    """``torch.nn.functional.cross_entropy`` of a fixed fan-in head's logits, which are never stored.

    Args:
        x, weight, indices, bias, group_size: as in ``fixed_fan_in_linear``.
        targets: class of every row, integers ``[B]`` (``x``'s leading dimensions flattened or as they are); a tensor,
            a NumPy array or a list.
        reduction: "mean" divides the sum by the summed class weights of the rows that count, as torch does; "sum".
        label_smoothing: share of the target spread evenly over all labels, in [0, 1).
        ignore_index: target of rows that do not count.
        class_weight: ``[L]`` weights of the classes.

    Returns:
        0-dim, in float32 (float64 for float64 inputs).

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype, device or value. Targets outside ``[0, L)`` are
            found on the CPU and with ``SPARSE_XMC_DEBUG=1``.
    """
    shape = check_layer(x, weight, indices, bias, group_size)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if debugging():
        validate_indices(indices, shape.D)
    x = autocast(x)
    softmax = Softmax(label_smoothing, class_weight, ignore_index, 0, shape.L)
    x, targets = x.reshape(-1, shape.D), check_classes(targets, x.shape[:-1], softmax, x.device)
    total = summed_cross_entropy(x, weight, indices, bias, targets, softmax, group_size=group_size)
    if reduction == "sum":
        return total
    return total / row_weights(targets, softmax, total.dtype).sum()


def check_classes(targets: Tensor, leading: torch.Size, softmax: Softmax, device: torch.device) -> Tensor:
    """Checks the arguments that only cross-entropy has; returns the targets as ``[B]``."""
    targets = class_ids(targets, device)
    check_tensor("targets", targets)
    L = softmax.num_classes
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64 class ids, got {targets.dtype} with layout {targets.layout}")
    if targets.numel() != leading.numel() or (targets.ndim != 1 and targets.shape != leading):
        raise ValueError(f"targets must be [{leading.numel()}], one class for each row of x, got {list(targets.shape)}")
    if targets.device != device:
        raise ValueError(f"targets must be on the device of x {device}, got {targets.device}")
    if not 0 <= softmax.smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {softmax.smoothing}")
    if softmax.class_weight is not None:
        check_float("class_weight", softmax.class_weight)
        check_constant("class_weight", softmax.class_weight)
        if tuple(softmax.class_weight.shape) != (L,) or softmax.class_weight.device != device:
            raise ValueError(
                f"class_weight must be [{L}] on {device}, got {list(softmax.class_weight.shape)} on "
                f"{softmax.class_weight.device}"
            )
    targets = targets.reshape(-1)
    if targets.device.type == "cpu" or debugging():
        bad = (targets != softmax.ignore_index) & ((targets < 0) | (targets >= L))
        if not torch.compiler.is_compiling() and bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"targets[{row}] is {int(targets[row])}, outside [0, {L})")
    return targets
