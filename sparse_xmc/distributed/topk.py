"""The best labels of all ranks from the best labels of each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.models.topk import best_of
from sparse_xmc.ops._contract import Positives


def topk_without(shard: FixedFanInLinear, x: Tensor, k: int, exclude: Positives) -> tuple[Tensor, Tensor]:
    """At most ``k`` best labels of every row that ``exclude`` does not hold; score -inf where none are left.

    A shard may hold fewer than ``k`` other labels, so it looks for as many more as a row excludes. Waits for the device.
    """
    L, num_rows, counted = shard.out_features, exclude.num_rows, exclude.counted()
    of_row = torch.bincount(torch.where(counted, exclude.rows, num_rows), minlength=num_rows + 1)[:num_rows]
    most = int(of_row.max()) if num_rows else 0
    scores, labels = shard.topk(x, min(k + most, L))
    rows = torch.arange(num_rows, device=x.device)
    excluded = torch.where(counted, exclude.rows.long() * L + exclude.labels, -1)
    scores = scores.masked_fill(torch.isin(rows[:, None] * L + labels, excluded), -float("inf"))
    return best_of(scores, labels, k)


def merge_candidates(
    scores: Tensor, labels: Tensor, k: int, first_label: int, collect: Callable[[Tensor, str], Tensor]
) -> tuple[Tensor, Tensor]:
    """The ``k`` best of all labels from every rank's best.

    Args:
        scores, labels: ``[rows, at most k]`` of this rank's labels, best first, ties by smaller label; labels count from 0.
        k: labels to return for each row.
        first_label: of this rank.
        collect: candidates ``[rows, k]`` of this rank to those of all ranks ``[ranks, rows, k]``; told what they are.
    """
    missing = k - scores.shape[1]
    scores = F.pad(scores, (0, missing), value=-float("inf"))
    labels = F.pad(labels + first_label, (0, missing), value=-1)
    found = (
        collect(scores, "exchange of the candidates' scores"),
        collect(labels, "exchange of the candidates' labels"),
    )
    # candidates in order of ranks are in order of labels among equals, which a stable sort keeps
    all_scores, all_labels = (t.transpose(0, 1).flatten(1) for t in found)
    return best_of(all_scores, all_labels, k)
