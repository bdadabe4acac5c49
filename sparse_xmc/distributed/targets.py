"""Every rank's sparse targets as the positives that this rank's labels need, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.ops._arguments import Targets
from sparse_xmc.ops._contract import Positives
from sparse_xmc.ops._target_forms import num_target_rows
from sparse_xmc.ops._targets import entry_keys, positives_of, sorted_positives

_INVALID = -1  # sent in place of a count by a rank whose targets are not usable, so that every rank raises


class ExchangedTargets:
    """Sparse targets of all rows for the labels of this rank, perhaps still on their way: see ``exchange_targets``.

    rows: rows that each rank of the label dimension contributes.
    """

    def __init__(self, rows: list[int], labels: range, arrive: Callable[[], Positives]) -> None:
        self.rows = rows
        self._labels, self._arrive = labels, arrive

    def wait(self) -> Positives:
        """``[sum(rows), len(labels)]``; the first of this rank's labels is label 0."""
        return self._arrive().block(self._labels.start, self._labels.stop)


def shared_targets(targets: Targets, ranks: Ranks, labels: range, out_features: int) -> ExchangedTargets:
    """The targets of rows that every rank has, of which nothing is sent.

    Raises:
        ValueError, TypeError: the targets don't fit, or are on another device.
    """
    positives = _sorted(targets, out_features, ranks.device)
    return ExchangedTargets([positives.num_rows], labels, lambda: positives)


def exchange_targets(targets: Targets, ranks: Ranks, labels: range, out_features: int) -> ExchangedTargets:
    """Starts sending this rank's targets ``[own rows, out_features]`` to every rank.

    Two integers per rank travel first (rows, positives), from host to host, then 8 bytes for each positive, in the
    background. The entries of other ranks' labels are never taken out of what arrives, as their number is not known here.

    Raises:
        TypeError: this rank's ``targets`` are of no form that ``fixed_fan_in_loss`` takes.
        ValueError: the targets of any rank have the wrong number of labels or, on a CPU, hold one outside
            ``[0, out_features)``; a GPU asserts that later.
    """
    positives: Positives | None = None
    failure: TypeError | ValueError | None = None
    try:
        positives = _sorted(targets, out_features, ranks.device)
    except (TypeError, ValueError) as error:
        failure = error
    mine = [0, _INVALID] if positives is None else [positives.num_rows, len(positives.labels)]
    counts = ranks.gather_integers(mine, "exchange of the batch's sizes")
    bad = [rank for rank, (_, of_rank) in enumerate(counts) if of_rank == _INVALID]
    if isinstance(failure, TypeError):
        raise failure
    if bad or positives is None:
        own = "" if failure is None else f"; on this one: {failure}"
        raise ValueError(
            f"targets must be [rows, {out_features}] with labels in [0, {out_features}): not so on ranks {bad}{own}"
        ) from failure
    rows = [rows for rows, _ in counts]
    if ranks.size == 1:
        alone = positives
        return ExchangedTargets(rows, labels, lambda: alone)
    num_rows, first = sum(rows), sum(rows[: ranks.rank])
    row = torch.where(positives.rows == positives.num_rows, num_rows, positives.rows + first)
    sent = [of_rank for _, of_rank in counts]
    pending = ranks.start_gather(entry_keys(positives.labels, row), sent, "exchange of the targets")
    return ExchangedTargets(rows, labels, lambda: positives_of(pending.wait(), num_rows, out_features))


def _sorted(targets: Targets, out_features: int, device: torch.device) -> Positives:
    positives = sorted_positives(targets, num_target_rows(targets), out_features, device)
    if positives.labels.device != device:
        raise ValueError(f"targets must be on the weight's device {device}, got {positives.labels.device}")
    return positives
