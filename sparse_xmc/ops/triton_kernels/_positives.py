"""Device code that finds the positives of a label tile in the list sorted by (label, row).

Few tiles have any, and a tile knows from two offsets whether it does. Every label of one that does keeps a position in the
list; batch tiles are visited in ascending order, so each positive is read once.
"""

import triton
import triton.language as tl

NO_ROW = tl.constexpr(0x7FFFFFFF)


@triton.jit
def first_position(positives, first, last, label):
    """Position ``[N]`` of the first entry at or after each ``label [N]`` among the entries ``first`` to ``last - 1``."""
    low = tl.zeros(label.shape, tl.int32) + first
    high = tl.zeros(label.shape, tl.int32) + last
    left = last - first
    while left > 0:
        open_ = low < high
        middle = (low + high) >> 1
        right = open_ & (tl.load(positives.labels + middle, mask=open_, other=0) < label)  # [N]
        low = tl.where(right, middle + 1, low)
        high = tl.where(open_ & (right == 0), middle, high)
        left = left >> 1
    return low


@triton.jit
def open_bucket(positives, bucket, label):
    """Where the first positive of each ``label [N]`` of a bucket stands, one past the bucket's last, whether there are any."""
    position = tl.load(positives.starts + bucket)  # 0-dim
    last = tl.load(positives.starts + bucket + 1)  # 0-dim
    holds_positives = position < last
    position = tl.zeros(label.shape, tl.int32) + position
    if holds_positives:
        position = first_position(positives, tl.min(position, 0), last, label)
    return position, last, holds_positives


@triton.jit
def _row_at(positives, last, label, known, position):
    """The row that stands at each label's position ``[N]``; NO_ROW behind its last one and for unknown labels."""
    valid = known & (position < last)
    valid &= tl.load(positives.labels + position, mask=valid, other=-1) == label  # [N]
    return tl.load(positives.rows + position, mask=valid, other=NO_ROW)  # [N]


@triton.jit
def positive_tile(
    positives, last, label, known, position, start, B, BLOCK_B: tl.constexpr, LABEL_AXIS: tl.constexpr
):  # fmt: skip
    """Which (label, row) are positives, for rows ``start ... start + BLOCK_B``; labels along LABEL_AXIS.

    Row B marks an entry that does not count: it is passed over. Returns (int1 tile, position moved on).
    """
    offs_b = start + tl.arange(0, BLOCK_B)
    end = tl.minimum(start + BLOCK_B, B)
    if LABEL_AXIS == 0:
        found = tl.zeros((label.shape[0], BLOCK_B), tl.int1)
    else:
        found = tl.zeros((BLOCK_B, label.shape[0]), tl.int1)
    row = _row_at(positives, last, label, known, position)
    due = (row < end) | (row == B)
    while tl.max(due.to(tl.int32)) > 0:
        here = tl.where(row < end, row, -1)
        if LABEL_AXIS == 0:
            found = found | (here[:, None] == offs_b[None, :])
        else:
            found = found | (here[None, :] == offs_b[:, None])
        position += due.to(tl.int32)
        row = _row_at(positives, last, label, known, position)
        due = (row < end) | (row == B)
    return found, position
