"""CPU kernel that checks and sorts sparse targets: one pass of checks, then a stable radix sort by label."""

import numpy as np
import torch
from torch import Tensor

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops.cpu_kernels._csr import check_csr

_DIGIT = 8  # bits of a label that one pass sorts by


@kernel
def _sort(crow, col, num_labels, labels, rows):
    """Stable, so that rows ascend within a label; what stands twice gets the row behind the last one."""
    # crow [B + 1], col [nnz], labels [nnz] int64, rows [nnz] int32
    nnz, num_rows = col.shape[0], crow.shape[0] - 1
    for row in range(num_rows):
        for i in range(crow[row], crow[row + 1]):
            labels[i], rows[i] = col[i], row
    other_labels, other_rows = np.empty(nnz, np.int64), np.empty(nnz, np.int32)
    ends = np.empty(1 << _DIGIT, np.int64)
    shift, passes = 0, 0
    while (num_labels - 1) >> shift > 0:
        ends[:] = 0
        for i in range(nnz):
            ends[labels[i] >> shift & 255] += 1
        begin = 0
        for digit in range(1 << _DIGIT):
            begin, ends[digit] = begin + ends[digit], begin
        for i in range(nnz):
            digit = labels[i] >> shift & 255
            other_labels[ends[digit]], other_rows[ends[digit]] = labels[i], rows[i]
            ends[digit] += 1
        labels, other_labels = other_labels, labels
        rows, other_rows = other_rows, rows
        shift += _DIGIT
        passes += 1
    if passes % 2:  # the last pass has filled the scratch memory
        other_labels[:], other_rows[:] = labels, rows
        labels, rows = other_labels, other_rows
    label, row = np.int64(-1), np.int32(-1)
    for i in range(nnz):
        if labels[i] == label and rows[i] == row:
            rows[i] = num_rows
        else:
            label, row = labels[i], rows[i]


def sort_positives(crow: Tensor, col: Tensor, num_rows: int, num_labels: int) -> tuple[Tensor, Tensor]:
    """Labels [nnz] int64, ascending, and their rows [nnz] int32, of row offsets [B + 1] and labels [nnz]."""
    offsets, columns = crow.numpy(), col.numpy()
    check_csr(offsets, columns, num_labels, "targets", "label")
    labels, rows = (
        torch.empty(col.shape[0], dtype=torch.int64, device="cpu"),
        torch.empty(col.shape[0], dtype=torch.int32, device="cpu"),
    )
    _sort(offsets, columns, num_labels, labels.numpy(), rows.numpy())
    return labels, rows
