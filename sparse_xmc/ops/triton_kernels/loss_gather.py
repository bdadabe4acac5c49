"""Fused head, one label at a time: products as element-wise multiplications and sums. For a group size of 1, and for any
float64 layer.

A tile is ``[BLOCK_L, BLOCK_K, BLOCK_B]``: for each of its connections the segment of ``x`` transposed that the batch tile
covers. The segments are loaded once and serve the logits and the weight gradient; the weights stay in registers over
all batch tiles.
"""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._head_math import ABSENT, add_part, finish_tile, loss_terms
from sparse_xmc.ops.triton_kernels._positives import first_position, row_at, sign_tile


@triton.jit
def gather_tile(
    tile,
    xt_ptr,
    weight_ptr,
    indices_ptr,
    bias_ptr,
    labels_ptr,
    rows_ptr,
    dxt_ptr,
    dw_ptr,
    db_ptr,
    scale_ptr,
    weight_momentum_ptr,
    weight_moment_ptr,
    bias_momentum_ptr,
    bias_moment_ptr,
    B,
    stride,
    L,
    nnz,
    search_steps,
    lr,
    momentum,
    weight_decay,
    decay,
    gain,
    correction,
    eps,
    seed,
    step,
    K: tl.constexpr,
    G: tl.constexpr,
    LOSS: tl.constexpr,
    NEED_LOSS: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    UPDATE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    ATOMIC: tl.constexpr,
    OFFSET: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """All that the fused head does for labels ``tile * BLOCK_L ...``; returns the sum of their loss."""
    ACC: tl.constexpr = tl.float64 if xt_ptr.dtype.element_ty == tl.float64 else tl.float32
    label = tile * BLOCK_L + tl.arange(0, BLOCK_L)  # [BLOCK_L] int64
    offs_k = tl.arange(0, BLOCK_K)
    known = label < L
    connected = known[:, None] & (offs_k < K)[None, :]
    weight_offs = label[:, None] * K + offs_k[None, :]
    weight = tl.load(weight_ptr + weight_offs, mask=connected, other=0.0).to(ACC)
    column = tl.load(indices_ptr + (label // G)[:, None] * K + offs_k[None, :], mask=connected, other=0)
    x_offs = column.to(OFFSET)[:, :, None] * stride + tl.arange(0, BLOCK_B)[None, None, :]
    position = first_position(labels_ptr, search_steps, nnz, label)
    row = row_at(labels_ptr, rows_ptr, nnz, label, known, position)

    total = tl.zeros((BLOCK_B,), ACC)
    dw = tl.zeros((BLOCK_L, BLOCK_K), ACC)
    db = tl.zeros((BLOCK_L,), ACC)
    for start in range(0, B, BLOCK_B):
        offs_b = start + tl.arange(0, BLOCK_B)
        mask = connected[:, :, None] & (offs_b < stride)[None, None, :]
        x = tl.load(xt_ptr + x_offs + start, mask=mask, other=0.0).to(ACC)
        absent = tl.where(known[:, None] & (offs_b < B)[None, :], 0.0, ABSENT)
        z = tl.sum(x * weight[:, :, None], 1) + absent
        if bias_ptr is not None:
            # loaded as a tile on purpose: the load's layout gives each logit to one thread, where the sum's layout
            # would have every thread that holds a part of it repeat the loss
            z += tl.load(bias_ptr + label[:, None] + (offs_b * 0)[None, :], mask=known[:, None], other=0.0).to(ACC)
        signs, position, row = sign_tile(
            labels_ptr, rows_ptr, nnz, label, known, position, row, start, B, ACC, BLOCK_B, 0
        )
        value, slope = loss_terms(z * signs, LOSS, NEED_LOSS)
        dz = slope * signs
        if NEED_LOSS:
            total += tl.sum(value, 0)
        if (dxt_ptr is not None) or NEED_WEIGHT:
            if LOSS != "squared_hinge" or tl.max((dz != 0.0).to(tl.int32)) > 0:
                if NEED_WEIGHT:
                    dw += tl.sum(x * dz[:, None, :], 2)
                    db += tl.sum(dz, 1)
                if dxt_ptr is not None:
                    part = weight[:, :, None] * dz[:, None, :]
                    add_part(dxt_ptr + x_offs + start, part, mask, ATOMIC)

    if NEED_WEIGHT:
        finish_tile(
            weight_ptr, bias_ptr, dw_ptr, db_ptr, scale_ptr,
            weight_momentum_ptr, weight_moment_ptr, bias_momentum_ptr, bias_moment_ptr,
            label, known, weight_offs, connected, dw, db,
            lr, momentum, weight_decay, decay, gain, correction, eps, seed, step, K, UPDATE, STOCHASTIC,
        )  # fmt: skip
    return tl.sum(total, 0)
