"""The best labels of all ranks from the best labels of each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from sparse_xmc.distributed.ranks import Ranks


def merge_candidates(
    scores: Tensor, labels: Tensor, k: int, rows: Sequence[int], ranks: Ranks, first_label: int
) -> tuple[Tensor, Tensor]:
    """Candidates of this rank's labels for all rows, to the ``k`` best of all labels for this rank's rows.

    Args:
        scores, labels: ``[sum(rows), at most k]``, best first, ties by smaller label; labels count from 0.
        k: labels to return for each row.
        rows: rows of each rank.
        first_label: of this rank.
    """
    missing = k - scores.shape[1]
    scores = F.pad(scores, (0, missing), value=-float("inf"))
    labels = F.pad(labels + first_label, (0, missing), value=-1)
    all_scores = ranks.send_rows(scores, rows, "exchange of the candidates' scores")
    all_labels = ranks.send_rows(labels, rows, "exchange of the candidates' labels")
    # candidates in order of ranks are in order of labels among equals, which a stable sort keeps
    all_scores, all_labels = (t.transpose(0, 1).flatten(1) for t in (all_scores, all_labels))
    best, order = all_scores.sort(dim=1, descending=True, stable=True)
    return best[:, :k], all_labels.gather(1, order[:, :k])
