"""Sorting of sparse targets on a GPU, without waiting for it; what is wrong with them is a device assert."""

import torch
from torch import Tensor


def sort_positives(crow: Tensor, col: Tensor, num_rows: int, num_labels: int) -> tuple[Tensor, Tensor]:
    """Labels [nnz] int64, ascending, and their rows [nnz] int32, of row offsets [B + 1] and labels [nnz]."""
    nnz = col.shape[0]
    offsets = crow.long()
    good = (offsets[1:] >= offsets[:-1]).all() & (offsets[0] == 0) & (offsets[-1] == nnz)
    torch._assert_async(good, f"crow_indices of targets must ascend from 0 to their number {nnz}")
    # the number of row ends at or before an entry is its row; never more than num_rows, whatever the matrix holds
    ends = torch.zeros(nnz + 1, dtype=torch.int32, device=col.device)
    ends.scatter_add_(0, offsets[1:].clamp(0, nnz), ends.new_ones(()).expand(num_rows))
    rows = ends[:-1].cumsum(0, dtype=torch.int32)
    labels, order = col.long().sort(stable=True)
    if nnz:
        torch._assert_async(
            (labels[0] >= 0) & (labels[-1] < num_labels), f"targets hold a label outside [0, {num_labels})"
        )
    rows = rows[order]
    repeated = (labels[1:] == labels[:-1]) & (rows[1:] == rows[:-1])
    rows[1:].masked_fill_(repeated, num_rows)
    return labels, rows
