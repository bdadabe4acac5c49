"""Sorting of sparse targets on a GPU, without waiting for it; what is wrong with them is a device assert.

A batch of usual size takes one launch and the assert; a larger one is sorted by torch.
"""

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._backend import capturing, interpreting
from sparse_xmc.ops.triton_kernels._compile_case import CompileCase
from sparse_xmc.ops.triton_kernels._launch import Launch, Plans, power_of_2, ready, stream_of

MAX_ENTRIES = 4096  # of one program
_PLANS = Plans()


@triton.jit
def _offsets_ascend(crow_ptr, B, nnz, BLOCK: tl.constexpr):
    """1 if the row offsets ascend from 0 to nnz, else 0."""
    good = tl.full((BLOCK,), 1, tl.int32)
    for start in range(0, B, BLOCK):
        row = start + tl.arange(0, BLOCK)
        here = tl.load(crow_ptr + row, mask=row < B, other=0)  # [BLOCK]
        following = tl.load(crow_ptr + row + 1, mask=row < B, other=0)  # [BLOCK]
        good &= (here <= following).to(tl.int32)
    ends = (tl.load(crow_ptr) == 0) & (tl.load(crow_ptr + B) == nnz)  # 0-dim each
    return tl.min(good, 0) & ends.to(tl.int32)


@triton.jit(do_not_specialize=["B", "nnz", "num_labels"])
def sort_kernel(
    crow_ptr,  # [B + 1]
    col_ptr,  # [nnz]
    labels_ptr,  # [nnz] int64
    rows_ptr,  # [nnz] int32
    good_ptr,  # 0-dim bool, true before: false if offsets do not ascend or a label is out of range
    B,
    nnz,
    num_labels,
    N: tl.constexpr,
):
    place = tl.arange(0, N)
    valid = place < nnz
    # the number of row ends at or before an entry is its row; never more than B, whatever the matrix holds
    low = tl.zeros((N,), tl.int32)
    high = low + B
    left = B
    while left > 0:
        open_ = low < high
        middle = (low + high) >> 1
        right = open_ & (tl.load(crow_ptr + 1 + middle, mask=open_ & valid, other=0) <= place)  # [N]
        low = tl.where(right, middle + 1, low)
        high = tl.where(open_ & (right == 0), middle, high)
        left = left >> 1
    label = tl.load(col_ptr + place, mask=valid, other=0).to(tl.int64)  # [N]
    inside = tl.min(((label >= 0) & (label < num_labels)).to(tl.int32), 0)
    if (_offsets_ascend(crow_ptr, B, nnz, 256) & inside) == 0:
        tl.store(good_ptr, False)
    keys = tl.sort(tl.where(valid, (label << 32) | low.to(tl.int64), 0x7FFFFFFFFFFFFFFF))
    # the entry below, which tells repeats, belongs to another thread: so through memory
    tl.store(labels_ptr + place, keys, mask=valid)
    tl.debug_barrier()
    below = tl.load(labels_ptr + place - 1, mask=valid & (place > 0), other=-1)  # [N]
    tl.debug_barrier()
    tl.store(labels_ptr + place, keys >> 32, mask=valid)
    tl.store(rows_ptr + place, tl.where(below == keys, B, (keys & 0xFFFFFFFF).to(tl.int32)), mask=valid)


def _flag(col: Tensor, stream: int | None) -> Tensor:
    """A flag that is true: the stream's own, since a false one ends in an assert after which the GPU does nothing more; for a
    graph, which is replayed, and in the interpreter, whose asserts can be caught, a new one."""
    if capturing(col) or (stream is None and interpreting()):
        return torch.ones((), dtype=torch.bool, device=col.device)
    return _flag_of(col.device, stream_of(col) if stream is None else stream)


@functools.cache
def _flag_of(device: torch.device, stream: int) -> Tensor:
    return torch.ones((), dtype=torch.bool, device=device)


def sort_positives(crow: Tensor, col: Tensor, num_rows: int, num_labels: int) -> tuple[Tensor, Tensor]:
    """Labels [nnz] int64, ascending, and their rows [nnz] int32, of row offsets [B + 1] and labels [nnz]."""
    nnz = col.shape[0]
    if nnz > MAX_ENTRIES:
        return _sorted_by_torch(crow, col, num_rows, num_labels)
    crow, col = crow.contiguous(), col.contiguous()
    labels = torch.empty_like(col) if col.dtype is torch.int64 else torch.empty_like(col, dtype=torch.int64)
    rows = torch.empty_like(col, dtype=torch.int32)
    stream = ready(col, crow)
    good = _flag(col, stream)
    entries = max(32, power_of_2(nnz))
    key = (entries, crow.dtype, col.dtype, col.device)
    launch = _PLANS.get(key)
    if launch is None:
        launch = _PLANS.keep(key, Launch(sort_kernel, (1,), N=entries, num_warps=max(1, min(8, entries // 128))))
    launch(stream, crow, col, labels, rows, good, num_rows, nnz, num_labels)
    torch._assert_async(
        good,
        f"crow_indices of targets must ascend from 0 to their number {nnz}, and their labels lie in [0, {num_labels})",
    )
    return labels, rows


def _sorted_by_torch(crow: Tensor, col: Tensor, num_rows: int, num_labels: int) -> tuple[Tensor, Tensor]:
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


def compile_cases() -> Iterator[CompileCase]:
    for nnz in (640, 4096):
        crow, col = (torch.empty(n, dtype=torch.int64, device="meta") for n in (129, nnz))
        yield CompileCase(f"sort_positives[nnz={nnz}]", functools.partial(sort_positives, crow, col, 128, 20_011))
