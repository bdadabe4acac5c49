"""Device code that finds the positives of a label tile in the list sorted by (label, row).

Every label of the tile keeps a position in the list and the row that stands there; batch tiles are visited in
ascending order, so each positive is read once.
"""

import triton
import triton.language as tl

NO_ROW = tl.constexpr(0x7FFFFFFF)


@triton.jit
def first_position(labels_ptr, search_steps, nnz, label):
    """Position ``[N]`` of the first entry at or after each ``label [N]``; ``search_steps`` is nnz's bit length."""
    low = tl.zeros(label.shape, tl.int32)
    high = low + nnz
    for _ in range(search_steps):
        open_ = low < high
        middle = (low + high) >> 1
        right = open_ & (tl.load(labels_ptr + middle, mask=open_, other=0) < label)
        low = tl.where(right, middle + 1, low)
        high = tl.where(open_ & (right == 0), middle, high)
    return low


@triton.jit
def row_at(labels_ptr, rows_ptr, nnz, label, position):
    """The row that stands at each label's position ``[N]``, NO_ROW behind its last one."""
    valid = position < nnz
    valid &= tl.load(labels_ptr + position, mask=valid, other=-1) == label
    return tl.load(rows_ptr + position, mask=valid, other=NO_ROW)


@triton.jit
def target_tile(labels_ptr, rows_ptr, nnz, label, position, row, start, B, BLOCK_B: tl.constexpr, LABEL_AXIS: tl.constexpr):
    """Whether (label, row) is a positive, for rows ``start ... start + BLOCK_B``, with the labels along LABEL_AXIS.

    Row B marks a repeated entry: it is passed over. Returns (targets, position, row) with the last two moved on.
    """
    offs_b = start + tl.arange(0, BLOCK_B)
    end = tl.minimum(start + BLOCK_B, B)
    if LABEL_AXIS == 0:
        targets = (row[:, None] == offs_b[None, :]) & (row < 0)[:, None]
    else:
        targets = (row[None, :] == offs_b[:, None]) & (row < 0)[None, :]
    due = (row < end) | (row == B)
    while tl.max(due.to(tl.int32)) > 0:
        if LABEL_AXIS == 0:
            targets |= row[:, None] == offs_b[None, :]
        else:
            targets |= row[None, :] == offs_b[:, None]
        position += due.to(tl.int32)
        row = row_at(labels_ptr, rows_ptr, nnz, label, position)
        due = (row < end) | (row == B)
    return targets, position, row
