"""Sparse targets as the fused kernels read them: positives sorted by label, so that a tile finds its own by search."""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import Targets, check_positive_int, csr_parts
from sparse_xmc.ops._backend import kernels
from sparse_xmc.ops._contract import Positives
from sparse_xmc.ops._dispatch import define, plain, watched
from sparse_xmc.ops._target_forms import csr_pair, is_plain, num_target_rows

_ROW_BITS = 32  # of a label and its row in one integer


def _sort(crow: Tensor, col: Tensor, num_rows: int, num_labels: int) -> tuple[Tensor, Tensor]:
    return kernels("targets", col).sort_positives(crow, col, num_rows, num_labels)


_sort_positives = define(
    "sort_positives(Tensor crow, Tensor col, int num_rows, int num_labels) -> (Tensor, Tensor)",
    _sort,
    lambda crow, col, *sizes: (
        col.new_empty(col.shape, dtype=torch.int64),
        col.new_empty(col.shape, dtype=torch.int32),
    ),
)


def sorted_positives(
    targets: Targets,
    num_rows: int,
    out_features: int,
    device: torch.device | None = None,
    *,
    eager: bool | None = None,
) -> Positives:
    """The entries of a target matrix by (label, row), on its device and without waiting for it.

    Args:
        targets: ``torch.sparse_csr`` tensor ``[num_rows, out_features]``, whose values are ignored, the pair of its
            ``crow_indices`` and ``col_indices``; another form (``_target_forms``), which ends up on ``device``; or
            ``Positives``, which are returned as they are.
        eager: whether nothing watches (``_dispatch.watched``); None: to be found out.

    Raises:
        ValueError, TypeError: wrong shape, layout or dtype. On a CPU also: offsets that do not ascend from 0 to the number
            of entries, labels outside ``[0, out_features)``. On a GPU those are device asserts, raised later.
    """
    if isinstance(targets, Positives):
        if targets[2:] != (num_rows, out_features):
            raise ValueError(f"targets must be [{num_rows}, {out_features}], got sorted ones of {list(targets[2:])}")
        labels, rows, _, _ = targets
        if labels.dtype is not torch.int64 or rows.dtype is not torch.int32 or labels.shape != rows.shape:
            raise TypeError(
                f"sorted targets hold int64 labels and as many int32 rows, got {labels.dtype} {list(labels.shape)} and "
                f"{rows.dtype} {list(rows.shape)}"
            )
        return targets
    if not is_plain(targets):
        targets = csr_pair(targets, num_rows, out_features, device or torch.device("cpu"))
    crow, col = csr_parts(targets, num_rows, out_features)
    if eager is None:
        eager = not watched()
    sort = _sort if eager and plain(crow, col) else _sort_positives
    labels, rows = sort(crow, col, num_rows, out_features)
    return Positives(labels, rows, num_rows, out_features)


def entry_keys(labels: Tensor, rows: Tensor) -> Tensor:
    """Entries ``(labels, rows) [nnz]`` as int64 that sort by (label, row)."""
    return (labels.long() << _ROW_BITS) | rows.long()


def positives_of(keys: Tensor, num_rows: int, num_labels: int) -> Positives:
    """Of ``entry_keys`` in any order, perhaps repeated, without waiting for their device.

    Entries that do not count stand in row ``num_rows``.
    """
    keys = keys.sort().values
    rows = (keys & ((1 << _ROW_BITS) - 1)).int()
    rows[1:].masked_fill_(keys[1:] == keys[:-1], num_rows)
    return Positives(keys >> _ROW_BITS, rows, num_rows, num_labels)


def sort_targets(
    targets: Targets, num_labels: int, *, num_rows: int | None = None, device: torch.device | str = "cpu"
) -> Positives:
    """Sorts a target matrix for the fused loss, which takes the result in its place.

    What ``fixed_fan_in_loss`` or ``fixed_fan_in_step_`` would do in every call, a loader's worker does beforehand.

    Args:
        targets: as in ``fixed_fan_in_loss``.
        num_labels: ``L``.
        num_rows: ``B``; None takes it from the targets.
        device: where targets from outside torch (lists, arrays) go; tensors stay where they are.

    Returns:
        ``Positives``, which travel by ``.to(device)``.

    Raises:
        ValueError, TypeError: as ``fixed_fan_in_loss`` for its targets.

    Examples:
        >>> import torch
        >>> from sparse_xmc import FixedFanInLinear, ops
        >>> positives = ops.sort_targets([[3, 17], [], [5]], num_labels=20)
        >>> loss = FixedFanInLinear(16, 20, fan_in=8).loss(torch.randn(3, 16), positives)
    """
    check_positive_int("num_labels", num_labels)
    rows = num_target_rows(targets) if num_rows is None else num_rows
    return sorted_positives(targets, rows, num_labels, torch.device(device))
