"""Sparse targets as the fused kernels read them: positives sorted by label, so that a tile finds its own by search."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import Targets, csr_parts
from sparse_xmc.ops._backend import debugging
from sparse_xmc.ops._target_forms import csr_pair, is_plain


class Positives(NamedTuple):
    """The nonzero pattern of ``targets [B, L]``, ordered by (label, row).

    labels: ``[nnz]`` int64, ascending.
    rows: ``[nnz]`` int32 in ``[0, B]``; ``B`` marks a repeated (label, row), which kernels ignore.
    """

    labels: Tensor
    rows: Tensor


def sorted_positives(
    targets: Targets, num_rows: int, out_features: int, device: torch.device | None = None
) -> Positives:
    """Sorts the entries of a CSR target matrix by label, on its device and without waiting for it.

    Labels outside ``[0, out_features)`` end up at either end of the sorted list, where kernels never look; with
    ``SPARSE_XMC_DEBUG=1`` they are a ``ValueError``.

    Args:
        targets: ``torch.sparse_csr`` tensor ``[num_rows, out_features]``, whose values are ignored, or the pair of its
            ``crow_indices`` and ``col_indices``; or another form (``_target_forms``), which ends up on ``device``.
    """
    if not is_plain(targets):
        targets = csr_pair(targets, num_rows, out_features, device or torch.device("cpu"))
    offsets, labels = csr_parts(targets, num_rows, out_features)
    labels = labels.long()
    if debugging():
        validate_labels(labels, out_features)
    # the number of row ends at or before an entry is its row; never more than num_rows, whatever the matrix holds
    # (counted rather than searched for: searchsorted wakes torch's threads on a CPU, which takes longer than all of this)
    ends = torch.zeros(labels.shape[0] + 1, dtype=torch.int32, device=labels.device)
    ends.scatter_add_(0, offsets[1:].long().clamp(0, labels.shape[0]), ends.new_ones(()).expand(num_rows))
    rows = ends[:-1].cumsum(0, dtype=torch.int32)
    labels, order = labels.sort(stable=True)
    rows = rows[order]
    repeated = (labels[1:] == labels[:-1]) & (rows[1:] == rows[:-1])
    rows[1:].masked_fill_(repeated, num_rows)
    return Positives(labels, rows)


def validate_labels(labels: Tensor, out_features: int) -> None:
    """Raises ``ValueError`` if a label is out of range. Waits for the device."""
    bad = (labels < 0) | (labels >= out_features)
    if bad.any():
        position = int(bad.nonzero()[0])
        raise ValueError(f"targets hold label {int(labels[position])} (entry {position}), outside [0, {out_features})")
