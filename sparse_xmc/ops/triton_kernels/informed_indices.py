"""Triton kernel of label centroids: sums of the rows of ``x`` over the positives of each label."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops.triton_kernels._compile_case import CompileCase


@triton.jit
def label_sums_kernel(
    x_ptr,  # [N, D]
    rows_ptr,  # [nnz]
    offsets_ptr,  # [labels + 1]
    sums_ptr,  # [labels, D]
    N,
    D,
    BLOCK_D: tl.constexpr,
):
    label = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], tl.float32)
    first, last = tl.load(offsets_ptr + label), tl.load(offsets_ptr + label + 1)  # 0-dim each
    for i in range(0, (last - first).to(tl.int32)):
        row = tl.load(rows_ptr + first + i).to(tl.int64)  # 0-dim
        total += tl.load(x_ptr + row * D + d, mask=d < tl.where(row < N, D, 0), other=0.0).to(tl.float32)  # [BLOCK_D]
    tl.store(sums_ptr + label * D + d, total, mask=d < D)


def label_sums(x: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
    """x [N, D], rows [nnz] (N = none), offsets [labels + 1] -> [labels, D] float32."""
    x = x.contiguous()
    labels, (N, D) = offsets.shape[0] - 1, x.shape
    sums = torch.empty(labels, D, dtype=torch.float32, device=x.device)
    block_d = min(1024, triton.next_power_of_2(D))
    label_sums_kernel[(labels, triton.cdiv(D, block_d))](x, rows, offsets, sums, N, D, BLOCK_D=block_d)
    return sums


def compile_cases() -> Iterator[CompileCase]:
    x = torch.empty(4096, 768, dtype=torch.bfloat16, device="meta")
    rows = torch.empty(9999, dtype=torch.int32, device="meta")
    offsets = torch.empty(1025, dtype=torch.int64, device="meta")
    yield CompileCase("label_sums[bf16,D=768]", lambda: label_sums(x, rows, offsets))
