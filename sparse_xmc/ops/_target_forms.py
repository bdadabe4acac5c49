"""Targets in the forms that people have them, as the two index tensors of a CSR matrix.

=====================================  ================================================================================
``torch.sparse_csr [B, L]``            every stored entry is a positive, its value is not read
``(crow_indices, col_indices)``        the two index tensors of such a matrix; a tuple of two arrays is always this pair
``torch.sparse_coo``, csc, bsr, bsc    ``[B, L]``; stored zeros are no positives
SciPy matrix or array, any format      ``[B, L]``; stored zeros are no positives
dense torch or NumPy ``[B, L]``        multi-hot; the leading dimensions may be those of ``x``; or a pandas frame
list with an entry per row             each a list, set, array or 1-D tensor of label ids, e.g. ``[[3, 17], [], [5]]``; or
                                       another sized collection of them: tuple, deque, pandas Series, nested tensor
class ids                              for the softmaxes: ints ``[B]`` as tensor, array or list
=====================================  ================================================================================

Values are 0 or a whole number (a label counts once, however often it stands in a row); soft labels are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.ops._arguments import check_tensor, csr_parts
from sparse_xmc.ops._contract import Positives
from sparse_xmc.ops._csr import csr_matrix

_INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)
_COMPRESSED = (torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_FORMS = (
    "a torch.sparse_csr or sparse_coo tensor [B, L], the pair (crow_indices, col_indices), a SciPy matrix, a dense "
    "multi-hot array [B, L], or a list of lists of label ids"
)


def is_plain(targets: Any) -> bool:
    """Whether the targets are a CSR tensor or the pair of its index tensors already."""
    if isinstance(targets, Tensor):
        return targets.layout is torch.sparse_csr
    if isinstance(targets, tuple):
        return len(targets) == 2 and isinstance(targets[0], Tensor) and isinstance(targets[1], Tensor)
    return False


def num_target_rows(targets: Any) -> int:
    """Number of rows that targets of any form (but class ids) are for."""
    if isinstance(targets, Positives):
        return targets.num_rows
    if (
        isinstance(targets, tuple)
        and len(targets) == 2
        and all(isinstance(part, (Tensor, np.ndarray)) for part in targets)
    ):
        return max(0, len(targets[0]) - 1)
    if isinstance(targets, Tensor) and targets.is_nested:
        return targets.size(0)
    shape = getattr(targets, "shape", None)
    return int(np.prod(shape[:-1])) if shape is not None and len(shape) > 1 else len(targets)


def csr_pair(targets: Any, num_rows: int, num_labels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Targets that are not plain as ``(crow [B + 1], col [nnz])`` int64; those from outside torch come to ``device``.

    Entries of sparse and dense tensors and of lists are checked here, their range in lists too.

    Raises:
        TypeError: another kind of object, ids that are no integers.
        ValueError: a wrong shape, a label outside ``[0, L)``, values that are no labels' (soft, negative, NaN).
    """
    if hasattr(targets, "to_numpy") and targets.ndim == 2:  # a pandas frame, which iterates its columns
        targets = targets.to_numpy()
    if isinstance(targets, np.ndarray) and targets.dtype != object:
        targets = torch.from_numpy(np.ascontiguousarray(targets)).to(device)
    if isinstance(targets, Tensor):
        check_tensor("targets", targets)
        if targets.is_meta:
            raise ValueError(f"targets must be on the device of the layer, {device}, got {targets.device}")
        if not targets.is_nested:
            return _of_tensor(targets, num_rows, num_labels)
        targets = list(targets.unbind())
    if type(targets).__module__.startswith("scipy.sparse"):
        return _of_scipy(targets, num_rows, num_labels, device)
    if (
        isinstance(targets, tuple)
        and len(targets) == 2
        and any(isinstance(part, (Tensor, np.ndarray)) for part in targets)
    ):
        if not all(isinstance(part, (Tensor, np.ndarray)) for part in targets):
            kinds = [type(part).__name__ for part in targets]
            raise TypeError(f"targets must be a pair of two tensors (crow_indices, col_indices), got {kinds}")
        crow, col = (torch.as_tensor(part, device=device) for part in targets)
        return crow, col
    if _is_list_like(targets):
        if len(targets) != num_rows:
            raise ValueError(f"targets must hold one list of labels for each of {num_rows} rows, got {len(targets)}")
        crow, col = pair_of_lists(list(targets), num_labels)
        return crow.to(device), col.to(device)
    raise TypeError(f"targets must be {_FORMS}, got {type(targets).__name__}")


def _is_list_like(targets: Any) -> bool:
    """Whether iterating it gives one entry per row, in order."""
    return isinstance(targets, Collection) and not isinstance(targets, (str, bytes, Mapping, Set))


def _check_values(values: Tensor) -> None:
    """Raises unless all are 0 or whole positive numbers. Waits for the device."""
    if values.dtype == torch.bool or not values.numel():
        return
    if values.is_complex():
        raise TypeError(f"targets must hold 0 and 1, got {values.dtype}")
    bad = (values < 0) | (values != values.floor() if values.is_floating_point() else values < 0)
    if bool(bad.any()):
        raise ValueError(f"targets must hold 0 and 1, got {values[bad][0].item()}: soft labels are not supported")


def _check_shape(shape: Sequence[int], num_rows: int, num_labels: int) -> None:
    leading = int(np.prod(shape[:-1])) if len(shape) > 1 else -1
    if leading != num_rows or shape[-1] != num_labels:
        hint = ""
        if len(shape) == 1 or (len(shape) == 2 and leading == num_rows):
            hint = " (label ids are given as a list of lists, classes with loss='cross_entropy')"
        raise ValueError(f"targets must be [{num_rows}, {num_labels}], got {list(shape)}{hint}")


def _of_tensor(targets: Tensor, num_rows: int, num_labels: int) -> tuple[Tensor, Tensor]:
    if targets.layout == torch.strided:
        _check_shape(targets.shape, num_rows, num_labels)
        targets = targets.reshape(num_rows, num_labels)
        _check_values(targets)
        rows, labels = targets.nonzero(as_tuple=True)
    elif targets.layout in (torch.sparse_coo, *_COMPRESSED):
        _check_shape(targets.shape, num_rows, num_labels)
        if targets.layout in _COMPRESSED:
            targets = targets.to_sparse_coo()
        _check_values(targets._values())
        held = targets._values() != 0
        rows, labels = targets._indices()[:, held]
        rows, order = rows.sort(stable=True)
        labels = labels[order]
    else:
        raise TypeError(f"targets must be {_FORMS}, got a tensor of layout {targets.layout}")
    return _row_ends(torch.bincount(rows, minlength=num_rows)), labels


def _of_scipy(targets: Any, num_rows: int, num_labels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    _check_shape(targets.shape, num_rows, num_labels)
    matrix = targets.tocsr()
    _check_values(torch.from_numpy(np.asarray(matrix.data)))
    if (matrix.data == 0).any():
        matrix = matrix.copy()
        matrix.eliminate_zeros()
    crow, col = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return crow.to(device), col.to(device)


def _row_ends(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def pair_of_lists(rows: Sequence[Any], num_labels: int) -> tuple[Tensor, Tensor]:
    """``(crow, col)`` int64 on the CPU of one collection of label ids per row."""
    arrays = [_ids(row, number) for number, row in enumerate(rows)]
    counts = np.fromiter((len(ids) for ids in arrays), np.int64, len(arrays))
    col = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
    bad = np.flatnonzero((col < 0) | (col >= num_labels))
    if len(bad):
        row = int(np.searchsorted(counts.cumsum(), bad[0], side="right"))
        raise ValueError(f"targets[{row}] holds label {col[bad[0]]}, outside [0, {num_labels})")
    if num_labels > 2 and len(counts) and (counts == num_labels).all() and (col <= 1).all():
        raise ValueError(
            f"targets are lists of {num_labels} zeros and ones: multi-hot rows are given as an array, lists hold label ids"
        )
    return _row_ends(torch.from_numpy(counts)), torch.from_numpy(col)


def _ids(row: Any, number: int) -> np.ndarray:
    """One row's label ids as int64."""
    if isinstance(row, Tensor):
        row = row.detach().cpu().numpy()
    elif isinstance(row, (Set, range)):
        row = list(row)
    try:
        ids = np.asarray(row)
    except ValueError:
        raise TypeError(f"targets[{number}] must be a flat list of label ids, got nested lists") from None
    if ids.ndim != 1:
        raise TypeError(f"targets[{number}] must be a list of label ids, got {type(row).__name__} {row!r:.50}")
    if not len(ids):
        return np.zeros(0, np.int64)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"targets[{number}] must hold integer label ids, got {row!r:.50}")
    if ids.dtype == np.uint64 and ids.max() > np.iinfo(np.int64).max:
        raise ValueError(f"targets[{number}] holds label {ids.max()}, which is no label's number")
    return ids.astype(np.int64, copy=False)


def class_ids(targets: Any, device: torch.device) -> Any:
    """Class ids given as an array, a list or a narrower integer tensor as an int64 tensor; others as they are.

    Raises:
        TypeError: ids that are no integers.
    """
    if isinstance(targets, Tensor):
        return targets.long() if targets.dtype in _INTEGERS else targets
    if hasattr(targets, "to_numpy"):  # a pandas series
        targets = targets.to_numpy()
    if isinstance(targets, (list, tuple)):
        targets = [one.item() if isinstance(one, Tensor) and one.ndim == 0 else one for one in targets]
    if isinstance(targets, list) and any(not isinstance(one, (int, np.integer)) for one in targets):
        kinds = sorted({type(one).__name__ for one in targets})
        raise TypeError(
            f"targets must be class ids, one integer for each row, got a {type(targets).__name__} of {kinds}"
        )
    if isinstance(targets, (list, range, np.ndarray)):
        ids = np.asarray(targets)
        if ids.size and ids.dtype.kind not in "iu":
            raise TypeError(f"targets must be integer class ids, got an array of {ids.dtype}")
        return torch.from_numpy(ids.astype(np.int64)).to(device)
    return targets


def csr_of_lists(rows: Sequence[Any], num_labels: int) -> Tensor:
    """``torch.sparse_csr [N, L]`` of one collection of label ids per row; labels ascend, each once in a row."""
    crow, col = pair_of_lists(rows, num_labels)
    row = torch.repeat_interleave(torch.arange(len(crow) - 1, device="cpu"), crow.diff())
    keys = torch.unique(row * num_labels + col)
    crow = _row_ends(torch.bincount(keys // max(1, num_labels), minlength=len(crow) - 1))
    values = torch.ones(len(keys), device="cpu")
    return csr_matrix(crow, keys % max(1, num_labels), values, (len(crow) - 1, num_labels))


def excluded_labels(exclude: Any, num_rows: int, num_labels: int, device: torch.device) -> Tensor:
    """Labels to leave out; see ``checked_csr``."""
    return checked_csr("exclude", exclude, num_rows, num_labels, device)


def checked_csr(name: str, given: Any, num_rows: int, num_labels: int, device: torch.device) -> Tensor:
    """An argument in any form of targets as a ``torch.sparse_csr`` matrix ``[B, L]`` whose entries are checked, which waits
    for the device.

    Raises:
        ValueError, TypeError: as ``csr_pair``, about ``name``; labels outside ``[0, L)``, broken row offsets.
    """
    try:
        if isinstance(given, Positives):
            given = [given.labels[given.rows == row] for row in range(given.num_rows)]
        if not is_plain(given):
            given = csr_pair(given, num_rows, num_labels, device)
        crow, labels = csr_parts(given, num_rows, num_labels)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("targets", name)) from None
    bad = (labels < 0) | (labels >= num_labels)
    if bad.any():
        verb = "hold" if name.endswith("s") else "holds"
        raise ValueError(f"{name} {verb} label {int(labels[bad][0])}, outside [0, {num_labels})")
    if crow[0] != 0 or crow[-1] != len(labels) or (crow.diff() < 0).any():
        raise ValueError(
            f"the row offsets of {name} must ascend from 0 to the number of entries {len(labels)}, got "
            f"{crow.tolist()!s:.60}"
        )
    if isinstance(given, Tensor):
        return given
    values = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return csr_matrix(crow, labels.to(crow.dtype), values, (num_rows, num_labels))
