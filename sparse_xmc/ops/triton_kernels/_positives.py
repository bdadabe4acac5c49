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
def row_at(labels_ptr, rows_ptr, nnz, label, known, position):
    """The row that stands at each label's position ``[N]``; NO_ROW behind its last one and for unknown labels."""
    valid = known & (position < nnz)
    valid &= tl.load(labels_ptr + position, mask=valid, other=-1) == label
    return tl.load(rows_ptr + position, mask=valid, other=NO_ROW)


@triton.jit
def sign_tile(
    labels_ptr,
    rows_ptr,
    nnz,
    label,
    known,
    position,
    row,
    start,
    B,
    ACC: tl.constexpr,
    BLOCK_B: tl.constexpr,
    LABEL_AXIS: tl.constexpr,
):
    """-1 where (label, row) is a positive and 1 elsewhere, for rows ``start ... start + BLOCK_B``; labels along LABEL_AXIS.

    Row B marks a repeated entry: it is passed over. Returns (signs, position, row) with the last two moved on.
    """
    offs_b = start + tl.arange(0, BLOCK_B)
    end = tl.minimum(start + BLOCK_B, B)
    if LABEL_AXIS == 0:
        signs = tl.full((label.shape[0], BLOCK_B), 1.0, ACC)
    else:
        signs = tl.full((BLOCK_B, label.shape[0]), 1.0, ACC)
    due = (row < end) | (row == B)
    while tl.max(due.to(tl.int32)) > 0:
        here = tl.where(row < end, row, -1)
        if LABEL_AXIS == 0:
            signs = tl.where(here[:, None] == offs_b[None, :], -1.0, signs)
        else:
            signs = tl.where(here[None, :] == offs_b[:, None], -1.0, signs)
        position += due.to(tl.int32)
        row = row_at(labels_ptr, rows_ptr, nnz, label, known, position)
        due = (row < end) | (row == B)
    return signs, position, row
