"""Input gradient by dense tiles: a chunk of labels at a time, whose weights are spread out in a scratch ``[labels, D]``.

The scratch and the chunk's derivatives stay in the L2 cache and are multiplied on tensor cores. Every program owns a tile of
the gradient in a buffer of its split of the labels, and adds to it from chunk to chunk without atomics: the order of all
sums is fixed. The splits are summed at the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops._backend import interpreting
from sparse_xmc.ops.triton_kernels import head_tiling
from sparse_xmc.ops.triton_kernels._dot import dot_terms, fp32_precision
from sparse_xmc.ops.triton_kernels._launch import Launch, Plans, cdiv, padded, power_of_2, ready
from sparse_xmc.ops.triton_kernels._layout import batch_major
from sparse_xmc.ops.triton_kernels.input_gradient import BLOCK_B, BLOCK_D, Problem, labels_at_once

PROGRAMS = 4 if interpreting() else 132  # of a product: one for each multiprocessor of an H100
_SPREAD = 2048  # connections that a program spreads out
_PLANS = Plans()


@triton.jit(do_not_specialize=["first", "number"])
def spread_kernel(
    weight_ptr,  # [L, K]
    indices_ptr,  # [L, K]
    out_ptr,  # [labels, D], zeros
    D,
    first,  # label of row 0 of out
    number,  # connections of the labels to spread out
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < number
    start = first.to(tl.int64) * K
    weight = tl.load(weight_ptr + start + place, mask=mask, other=0.0)  # [BLOCK]
    column = tl.load(indices_ptr + start + place, mask=mask, other=0).to(tl.int64)  # [BLOCK]
    tl.store(out_ptr + place // K * D + column, weight, mask=mask)


@triton.jit(do_not_specialize=["labels", "per_split"])
def product_kernel(
    dz_ptr,  # [labels, B], any strides
    stride_l,
    stride_b,
    dense_ptr,  # [labels, D]
    out_ptr,  # [splits, D, stride] in float32, added to
    D,
    B,
    stride,
    labels,
    per_split,  # labels of a split
    DOT: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    tiles_d, tiles_b = tl.cdiv(D, BLOCK_D), tl.cdiv(stride, BLOCK_B)
    pid = tl.program_id(0)
    offs_d = pid % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    offs_b = pid // tiles_d % tiles_b * BLOCK_B + tl.arange(0, BLOCK_B)
    split = (pid // (tiles_d * tiles_b)).to(tl.int64)
    acc = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    start = split * per_split
    last = tl.minimum(start + per_split, labels)
    for label in range(start, last, BLOCK_L):
        offs_l = label + tl.arange(0, BLOCK_L)
        dz_ptrs = dz_ptr + offs_l[:, None] * stride_l + offs_b[None, :].to(tl.int64) * stride_b
        dz = tl.load(dz_ptrs, mask=(offs_l < last)[:, None] & (offs_b < B)[None, :], other=0.0)  # [BLOCK_L, BLOCK_B]
        dense_ptrs = dense_ptr + offs_l[:, None] * D + offs_d[None, :]
        mask = (offs_l < last)[:, None] & (offs_d < D)[None, :]
        dense = tl.load(dense_ptrs, mask=mask, other=0.0)  # [BLOCK_L, BLOCK_D]
        if TERMS > 1:
            dense = dense.to(tl.float32)
        acc = dot_terms(tl.trans(dz), dense, acc, DOT, TERMS, PRECISION)
    out_ptrs = out_ptr + (split * D + offs_d[:, None]) * stride + offs_b[None, :]
    inside = (offs_d < D)[:, None] & (offs_b < stride)[None, :]
    tl.store(out_ptrs, tl.load(out_ptrs, mask=inside, other=0.0) + tl.trans(acc), mask=inside)  # [BLOCK_D, BLOCK_B]


def splits(D: int, stride: int) -> int:
    """How many parts the labels of a chunk are summed in."""
    return max(1, PROGRAMS // (cdiv(D, BLOCK_D) * max(1, cdiv(stride, BLOCK_B))))


def add_product_(dz: Tensor, dense: Tensor, out: Tensor) -> None:
    """Adds ``dz [labels, B]`` (any strides) times ``dense [labels, D]`` to ``out [splits, D, stride]``, each split a part."""
    (labels, B), (number, D, stride), strides = dz.shape, out.shape, dz.stride()
    key = (B, D, stride, number, strides, dz.dtype, dense.dtype, fp32_precision(), dz.device)
    launch = _PLANS.get(key)
    if launch is None:
        dot, terms, precision = head_tiling.operands(dz.dtype, dense.dtype)
        block_d = block_b = block_l = 32
        if dot.primitive_bitwidth == 16:
            # a weight of several numbers in a tile of 128 x 64 spills thousands of bytes where operands stand in registers
            crowded = terms > 1 and not head_tiling.has_room(dz.device)
            block_d, block_b, block_l = (
                BLOCK_D,
                min(64 if crowded else BLOCK_B, power_of_2(stride)),
                32 if crowded else 64,
            )
        grid = (cdiv(D, block_d) * cdiv(stride, block_b) * number,)
        constants = {"DOT": dot, "TERMS": terms, "PRECISION": precision, "BLOCK_L": block_l}
        warps = 8 if block_d * block_b >= 1 << 14 else 4
        chosen = Launch(product_kernel, grid, **constants, BLOCK_D=block_d, BLOCK_B=block_b, num_warps=warps)
        launch = _PLANS.keep(key, chosen)
    per_split = cdiv(labels, number)
    launch(ready(dz, dense, out), dz, *strides, dense, out, D, B, stride, labels, per_split)


def backward_input(dy: Tensor, weight: Tensor, indices: Tensor, in_features: int) -> Tensor:
    """dy [B, L] -> dx [B, D] in dy's dtype, the same bits on each run; for a group size of 1."""
    (B, L), K, D = dy.shape, weight.shape[1], in_features
    stride = padded(B)
    chunk = min(L, labels_at_once("dense", Problem(B, L, D, K, dy.dtype, weight.dtype), 64))
    parts = torch.zeros(splits(D, stride), D, stride, dtype=compute_dtype(dy.dtype), device=dy.device)
    scratch = torch.empty(chunk, D, dtype=weight.dtype, device=dy.device)
    for first in range(0, L, chunk):
        last = min(first + chunk, L)
        dense = scratch[: last - first].zero_()
        spread_(weight, indices, dense, first)
        add_product_(dy[:, first:last].t(), dense, parts)
    return batch_major(parts.sum(0), B, dy.dtype)


def spread_(weight: Tensor, indices: Tensor, out: Tensor, first: int) -> None:
    """Writes the weights of the labels from ``first`` on where they belong in ``out [labels, D]``, which is zero."""
    (labels, D), K = out.shape, weight.shape[1]
    number = labels * K
    key = (number, D, K, weight.dtype, indices.dtype, out.device)
    launch = _PLANS.get(key)
    if launch is None:
        launch = Launch(spread_kernel, (cdiv(number, _SPREAD),), K=K, BLOCK=_SPREAD, num_warps=4)
        launch = _PLANS.keep(key, launch)
    launch(ready(weight, indices), weight, indices, out, D, first, number)
