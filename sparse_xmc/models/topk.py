"""Top-k of logits that are in memory, a few rows of the batch at a time, and of several heads' candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_xmc.models.sparse_rows import csr_rows
from sparse_xmc.ops._arguments import Targets, as_int, check_positive_int
from sparse_xmc.ops._csr import csr_matrix
from sparse_xmc.ops._target_forms import excluded_labels
from sparse_xmc.ops.topk import sorted_exclusions

TOPK_ROWS = 64  # rows whose logits exist at a time where a head has no top-k of its own


def check_k(k: int, num_labels: int) -> int:
    """``k`` as an integer of Python's; raises unless so many labels can be returned."""
    k = as_int(k)
    check_positive_int("k", k)
    if k > num_labels:
        raise ValueError(f"k must not exceed the number of labels: k={k}, labels {num_labels}")
    return k


def topk_of_logits(logits: Tensor, k: int, exclude: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(scores, labels) [..., k]`` of ``logits [..., L]`` in decreasing order; equal scores by smaller label.

    ``exclude``: CSR ``[B, L]`` of labels not to return, a row for each of the logits' rows.
    """
    L = logits.shape[-1]
    k = check_k(k, L)
    if exclude is not None:
        sorted_exclusions(exclude, logits.numel() // L, L, k)
        logits = without(logits, exclude)
    order = torch.sort(logits, dim=-1, descending=True, stable=True)
    return order.values[..., :k], order.indices[..., :k]


def without(logits: Tensor, exclude: Tensor) -> Tensor:
    """Logits that are -inf wherever the CSR matrix ``exclude`` has an entry, of whatever value."""
    entries = torch.ones(exclude.col_indices().shape, device=logits.device)
    pattern = csr_matrix(exclude.crow_indices(), exclude.col_indices(), entries, exclude.shape)
    return logits.masked_fill(pattern.to_dense().bool().view(logits.shape), -torch.inf)


def topk_by_rows(
    logits: Callable[[int, int], Tensor], lead: Sequence[int], k: int, exclude: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``(scores, labels) [*lead, k]`` where ``logits(start, stop)`` makes ``[stop - start, L]`` of them."""
    count = math.prod(lead)
    parts = []
    for start in range(0, max(1, count), TOPK_ROWS):
        stop = min(start + TOPK_ROWS, count)
        parts.append(
            topk_of_logits(logits(start, stop), k, None if exclude is None else csr_rows(exclude, start, stop))
        )
    scores, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return scores.view(*lead, k), labels.view(*lead, k)


def head_topk(head: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The head's ``topk``; for a head without one, from the logits of a few rows at a time."""
    if hasattr(head, "topk"):
        return head.topk(x, k=k)
    rows = x.reshape(-1, x.shape[-1])
    return topk_by_rows(lambda start, stop: head(rows[start:stop]), x.shape[:-1], k)


def merge_topk(parts: list[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Best ``k`` of several top-k results over disjoint, ascending label ranges."""
    scores = torch.cat([scores for scores, _ in parts], dim=-1)
    labels = torch.cat([labels for _, labels in parts], dim=-1)
    return best_of(scores, labels, k)


def best_of(scores: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` best of candidates ``[..., n]`` whose labels ascend among equal scores: so do those of the result."""
    best = torch.sort(scores, dim=-1, descending=True, stable=True)
    return best.values[..., :k], labels.gather(-1, best.indices[..., :k])


def topk_with_few_left(part: Any, x: Tensor, k: int, exclude: Tensor, num_labels: int) -> tuple[Tensor, Tensor]:
    """Top-k of one part of a head; labels to leave out have a score of -inf where too few others are left in a row."""
    left = num_labels - exclude.crow_indices().diff()
    if not len(left) or int(left.min()) >= k:
        return part.topk(x, k, exclude=exclude)
    rows = x.reshape(-1, x.shape[-1])

    def masked(start: int, stop: int) -> Tensor:
        return without(part(rows[start:stop]), csr_rows(exclude, start, stop))

    return topk_by_rows(masked, x.shape[:-1], k)


def exclusions(exclude: Targets | None, x: Tensor, num_labels: int) -> Tensor | None:
    """Labels that a head leaves out for the rows ``x [..., D]``, as a CSR matrix ``[B, L]``."""
    return None if exclude is None else excluded_labels(exclude, x.shape[:-1].numel(), num_labels, x.device)
