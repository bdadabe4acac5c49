"""Every rank's sparse targets, as the columns that this rank's labels need."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_xmc.distributed.ranks import PendingGather, Ranks
from sparse_xmc.ops._arguments import Targets, csr_parts

_INVALID = -1  # sent in place of a count by a rank whose targets are not usable, so that every rank raises


class ExchangedTargets:
    """Sparse targets of all rows for the labels of this rank, perhaps still on their way: see ``exchange_csr``.

    rows: rows that each rank of the label dimension contributes.
    """

    def __init__(
        self, pending: PendingGather, rows: list[int], entries: list[int], labels: range, out_features: int
    ) -> None:
        self.rows = rows
        self._pending, self._entries, self._labels, self._out_features = pending, entries, labels, out_features

    def wait(self) -> Tensor:
        """``[sum(rows), len(labels)]`` as ``torch.sparse_csr``; the first of this rank's labels is column 0."""
        keys = self._pending.wait()
        first_rows = torch.tensor([0, *self.rows[:-1]], device=keys.device).cumsum(0)
        sender = torch.repeat_interleave(torch.tensor(self._entries, device=keys.device))
        row, label = first_rows[sender] + keys // self._out_features, keys % self._out_features
        mine = (label >= self._labels.start) & (label < self._labels.stop)
        num_rows = sum(self.rows)
        ends = torch.bincount(row[mine], minlength=num_rows).cumsum(0)
        columns = label[mine] - self._labels.start
        return torch.sparse_csr_tensor(
            torch.cat([ends.new_zeros(1), ends]),
            columns,
            torch.ones_like(columns, dtype=torch.bool),
            size=(num_rows, len(self._labels)),
            check_invariants=False,
        )


def exchange_csr(targets: Targets, ranks: Ranks, labels: range, out_features: int) -> ExchangedTargets:
    """Starts sending this rank's targets ``[own rows, out_features]`` to every rank.

    Two integers per rank travel first (rows, positives), then 8 bytes for each positive, in the background.

    Raises:
        TypeError: this rank's ``targets`` are neither a CSR matrix nor its two index tensors.
        ValueError: the targets of any rank have the wrong number of labels or hold one outside ``[0, out_features)``.
    """
    if isinstance(targets, tuple):
        num_rows, num_labels = len(targets[0]) - 1, out_features
    else:
        num_rows, num_labels = targets.shape if targets.ndim == 2 else (0, 0)
    parts = csr_parts(targets, num_rows, num_labels)
    offsets, columns = (part.to(ranks.device, torch.int64) for part in parts)
    usable = num_labels == out_features
    if usable and columns.numel():
        low, high = columns.aminmax()
        usable = bool((low >= 0) & (high < out_features))
    counts = ranks.gather_integers([num_rows, len(columns) if usable else _INVALID], "exchange of the batch's sizes")
    bad = [rank for rank, (_, entries) in enumerate(counts) if entries == _INVALID]
    if bad:
        raise ValueError(
            f"targets must be [rows, {out_features}] with labels in [0, {out_features}): not so on ranks {bad}"
        )
    keys = torch.repeat_interleave(offsets.diff()) * out_features + columns
    entries = [count for _, count in counts]
    pending = ranks.start_gather(keys, entries, "exchange of the targets")
    return ExchangedTargets(pending, [rows for rows, _ in counts], entries, labels, out_features)
