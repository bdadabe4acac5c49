"""Streaming top-k: the best labels of every row without a ``[B, L]`` tensor."""

from typing import Any

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import Targets, as_int, autocast, check_layer, check_positive_int, validate_indices
from sparse_xmc.ops._backend import debugging, kernels
from sparse_xmc.ops._dispatch import define, direct
from sparse_xmc.ops._target_forms import excluded_labels


def _topk(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return kernels("topk", x).topk(x, *arguments)


topk_op = define(
    "topk(Tensor x, Tensor weight, Tensor indices, Tensor? bias, SymInt k, SymInt group_size, Tensor? exclude_offsets,"
    " Tensor? exclude_labels, Tensor? weight_scale=None) -> (Tensor, Tensor)",
    _topk,
    lambda x, weight, indices, bias, k, *arguments: (
        x.new_empty(x.shape[0], k),
        x.new_empty(x.shape[0], k, dtype=torch.int64),
    ),
)


def sorted_exclusions(exclude: Tensor, rows: int, out_features: int, k: int) -> tuple[Tensor, Tensor]:
    """Offsets and ascending, distinct labels of every row of what ``excluded_labels`` returned. Waits for the device."""
    labels = exclude.col_indices().long()
    counts = exclude.crow_indices().long().diff()
    row = torch.repeat_interleave(torch.arange(rows, device=labels.device), counts)
    keys = torch.unique(row * out_features + labels)
    row, labels = keys // out_features, keys % out_features
    offsets = torch.searchsorted(row, torch.arange(rows + 1, device=labels.device))
    free = out_features - offsets.diff()
    if bool((free < k).any()):
        worst = int(free.argmin())
        raise ValueError(f"k must not exceed the labels that are left: k={k}, row {worst} has {int(free[worst])}")
    return offsets, labels


@torch.no_grad()
def fixed_fan_in_topk(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None = None,
    *,
    k: int,
    group_size: int = 1,
    exclude: Targets | None = None,
    weight_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The ``k`` labels of highest score for every row, exact, with ``O(B * k)`` memory beside the layer.

    Scores are compared as they are accumulated (float32, float64 for float64 inputs) and rounded to x's dtype
    afterwards. Equal scores go by ascending label; NaN counts as the highest score, as in ``torch.topk``. Not
    differentiable.

    Args:
        x, weight, indices, bias, group_size, weight_scale: as in ``fixed_fan_in_linear``; ``x [..., D]`` has ``B`` rows in all.
        k: at most the number of labels that may be returned.
        exclude: labels not to return (filtered evaluation), in any form of targets (``ops._target_forms``): a
            ``torch.sparse_csr`` matrix ``[B, L]`` whose values are ignored, a list of lists of label ids, ... A label may
            be repeated. Checking them waits for the device.

    Returns:
        scores: ``[..., k]`` in x's dtype, descending.
        labels: ``[..., k]`` int64.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device; ``k`` exceeds the labels available.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> x, weight = torch.tensor([[1.0, 10.0, 100.0]]), torch.ones(3, 2)
        >>> indices = torch.tensor([[0, 1], [1, 2], [0, 2]], dtype=torch.uint16)
        >>> ops.fixed_fan_in_topk(x, weight, indices, k=2)
        (tensor([[110., 101.]]), tensor([[1, 2]]))
    """
    shape = check_layer(x, weight, indices, bias, group_size, weight_scale)
    k = as_int(k)
    check_positive_int("k", k)
    if k > shape.L:
        raise ValueError(f"k must not exceed the number of labels: k={k}, weight {list(weight.shape)}")
    if debugging():
        validate_indices(indices, shape.D)
    rows = x if x.ndim == 2 else x.reshape(-1, shape.D)
    excluded: tuple[Tensor | None, Tensor | None] = (None, None)
    if exclude is not None:
        exclude = excluded_labels(exclude, rows.shape[0], shape.L, weight.device)
        excluded = sorted_exclusions(exclude, rows.shape[0], shape.L, k)
        if exclude.device != weight.device:
            raise ValueError(f"exclude must be on the weight's device {weight.device}, got {exclude.device}")
    call = _topk if direct(x, weight, indices) else topk_op
    scores, labels = call(autocast(rows), weight, indices, bias, k, group_size, *excluded, weight_scale)
    if x.ndim == 2:
        return scores, labels
    return scores.reshape(*x.shape[:-1], k), labels.reshape(*x.shape[:-1], k)
