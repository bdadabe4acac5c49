"""Every rank's sparse targets, as the columns that this rank's labels need."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_xmc.distributed.ranks import PendingGather, Ranks
from sparse_xmc.models.sparse_rows import csr_columns
from sparse_xmc.ops._arguments import Targets
from sparse_xmc.ops._csr import csr_matrix
from sparse_xmc.ops._target_forms import csr_tensor, num_target_rows

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
        counts = torch.tensor(self._entries, device=keys.device)
        sender = torch.repeat_interleave(counts, output_size=len(keys))  # told, the device need not be asked
        row, label = first_rows[sender] + keys // self._out_features, keys % self._out_features
        mine = (label >= self._labels.start) & (label < self._labels.stop)
        num_rows = sum(self.rows)
        ends = torch.bincount(row[mine], minlength=num_rows).cumsum(0)
        columns = label[mine] - self._labels.start
        values = torch.ones_like(columns, dtype=torch.bool)
        return csr_matrix(torch.cat([ends.new_zeros(1), ends]), columns, values, (num_rows, len(self._labels)))


class SharedTargets(ExchangedTargets):
    """Those of rows that every rank has: nothing is sent."""

    def __init__(self, matrix: Tensor, labels: range) -> None:
        self.rows = [matrix.shape[0]]
        self._matrix, self._labels = matrix, labels

    def wait(self) -> Tensor:
        return csr_columns(self._matrix, self._labels.start, self._labels.stop)


def exchange_csr(targets: Targets, ranks: Ranks, labels: range, out_features: int) -> ExchangedTargets:
    """Starts sending this rank's targets ``[own rows, out_features]`` to every rank.

    Two integers per rank travel first (rows, positives), then 8 bytes for each positive, in the background.

    Raises:
        TypeError: this rank's ``targets`` are of no form that ``fixed_fan_in_loss`` takes.
        ValueError: the targets of any rank have the wrong number of labels or hold one outside ``[0, out_features)``.
    """
    num_rows, entries, failure = 0, _INVALID, None
    offsets = columns = torch.empty(0, dtype=torch.int64, device=ranks.device)
    try:
        num_rows = num_target_rows(targets)
        matrix = csr_tensor(targets, num_rows, out_features, ranks.device)
        offsets, columns = matrix.crow_indices().long(), matrix.col_indices().long()
        entries = len(columns)
    except (TypeError, ValueError) as error:
        failure = error
    counts = ranks.gather_integers([num_rows, entries], "exchange of the batch's sizes")
    bad = [rank for rank, (_, of_rank) in enumerate(counts) if of_rank == _INVALID]
    if isinstance(failure, TypeError):
        raise failure
    if bad:
        own = "" if failure is None else f"; on this one: {failure}"
        raise ValueError(
            f"targets must be [rows, {out_features}] with labels in [0, {out_features}): not so on ranks {bad}{own}"
        ) from failure
    keys = torch.repeat_interleave(offsets.diff(), output_size=len(columns)) * out_features + columns
    sent = [of_rank for _, of_rank in counts]
    pending = ranks.start_gather(keys, sent, "exchange of the targets")
    return ExchangedTargets(pending, [rows for rows, _ in counts], sent, labels, out_features)
