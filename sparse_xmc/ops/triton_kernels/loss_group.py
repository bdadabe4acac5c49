"""Fused head, one group of labels at a time: products as ``tl.dot``. For labels that share their connections.

A tile is a group, or ``BLOCK_L`` labels of it: the ``[BLOCK_K, BLOCK_B]`` segments of ``x`` transposed are gathered once
for all of them. The batch is the long side of the logits' product and the connections that of the two gradients', so
that Hopper's wgmma (64 rows) applies.
"""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._dot import dot
from sparse_xmc.ops.triton_kernels._head_math import ABSENT, add_part, finish_tile, loss_terms
from sparse_xmc.ops.triton_kernels._positives import first_position, row_at, sign_tile
from sparse_xmc.ops.triton_kernels._rounding import round_nearest


@triton.jit
def dot_terms(a, b, acc, DOT: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + a @ b`` with ``b`` float32, multiplied as the sum of TERMS numbers in DOT: 3 bfloat16 hold all its bits."""
    for _ in tl.static_range(TERMS):
        term = round_nearest(b, DOT)
        acc = dot(a, term, acc, DOT, PRECISION)
        b = b - term.to(tl.float32)
    return acc


@triton.jit
def group_tile(
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
    DOT: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """All that the fused head does for ``BLOCK_L`` labels of a group; returns the sum of their loss.

    DOT: dtype of the matrix operands. TERMS: how many of them make up a weight, or a derivative for the weight gradient.
    SHIFT: power of two that keeps small derivatives out of DOT's subnormal range.
    """
    PARTS: tl.constexpr = (G + BLOCK_L - 1) // BLOCK_L
    group = tile // PARTS
    member = tile % PARTS * BLOCK_L + tl.arange(0, BLOCK_L)
    label = group * G + member  # [BLOCK_L] int64
    offs_k = tl.arange(0, BLOCK_K)
    slot = offs_k < K
    known = (member < G) & (label < L)
    connected = known[:, None] & slot[None, :]
    weight_offs = label[:, None] * K + offs_k[None, :]
    weight = tl.load(weight_ptr + weight_offs, mask=connected, other=0.0).to(tl.float32)
    weight = tl.trans(weight)
    column = tl.load(indices_ptr + group * K + offs_k, mask=slot, other=0)
    x_offs = column.to(OFFSET)[:, None] * stride + tl.arange(0, BLOCK_B)[None, :]
    bias = tl.where(known, 0.0, ABSENT)
    if bias_ptr is not None:
        bias += tl.load(bias_ptr + label, mask=known, other=0.0).to(tl.float32)
    position = first_position(labels_ptr, search_steps, nnz, label)
    row = row_at(labels_ptr, rows_ptr, nnz, label, known, position)

    total = tl.zeros((BLOCK_B,), tl.float32)
    dw = tl.zeros((BLOCK_K, BLOCK_L), tl.float32)
    db = tl.zeros((BLOCK_L,), tl.float32)
    zero_x = tl.zeros((BLOCK_K, BLOCK_B), tl.float32)
    for start in range(0, B, BLOCK_B):
        offs_b = start + tl.arange(0, BLOCK_B)
        mask = slot[:, None] & (offs_b < stride)[None, :]
        x = tl.load(xt_ptr + x_offs + start, mask=mask, other=0.0)  # [BLOCK_K, BLOCK_B]
        z = bias[None, :] + tl.where(offs_b < B, 0.0, ABSENT)[:, None]
        z = dot_terms(tl.trans(x), weight, z, DOT, TERMS, PRECISION)
        signs, position, row = sign_tile(
            labels_ptr, rows_ptr, nnz, label, known, position, row, start, B, tl.float32, BLOCK_B, 1
        )
        value, slope = loss_terms(z * signs, LOSS, NEED_LOSS)
        dz = slope * signs
        if NEED_LOSS:
            total += tl.sum(value, 1)
        if (dxt_ptr is not None) or NEED_WEIGHT:
            if LOSS != "squared_hinge" or tl.max((dz != 0.0).to(tl.int32)) > 0:
                scaled = dz * SHIFT
                if NEED_WEIGHT:
                    dw = dot_terms(x, scaled, dw, DOT, TERMS, PRECISION)
                    db += tl.sum(dz, 0)
                if dxt_ptr is not None:
                    part = dot(round_nearest(weight, DOT), tl.trans(round_nearest(scaled, DOT)), zero_x, DOT, PRECISION)
                    add_part(dxt_ptr + x_offs + start, part * (1.0 / SHIFT), mask, ATOMIC)

    if NEED_WEIGHT:
        finish_tile(
            weight_ptr, bias_ptr, dw_ptr, db_ptr, scale_ptr,
            weight_momentum_ptr, weight_moment_ptr, bias_momentum_ptr, bias_moment_ptr,
            label, known, weight_offs, connected, tl.trans(dw) * (1.0 / SHIFT), db,
            lr, momentum, weight_decay, decay, gain, correction, eps, seed, step, K, UPDATE, STOCHASTIC,
        )  # fmt: skip
    return tl.sum(total, 0)
