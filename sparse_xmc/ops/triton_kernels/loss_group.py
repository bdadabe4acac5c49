"""Fused head, one group of labels at a time: products as ``tl.dot``. For labels that share their connections.

A tile is a group, or ``BLOCK_L`` labels of it: the ``[BLOCK_K, BLOCK_B]`` segments of ``x`` transposed are gathered once
for all of them. The batch is the long side of the logits' product and the connections that of the two gradients', so
that Hopper's wgmma (64 rows) applies.
"""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._head_math import add_part, finish_tile, loss_terms
from sparse_xmc.ops.triton_kernels._positives import first_position, row_at, target_tile
from sparse_xmc.ops.triton_kernels._rounding import INTERPRETED, round_nearest


@triton.jit
def _operand(value, DTYPE: tl.constexpr):
    """``value`` rounded to a matrix operand's dtype (in the interpreter then widened: its products misread bfloat16)."""
    value = round_nearest(value, DTYPE)
    if INTERPRETED:
        return value.to(tl.float32)
    else:
        return value


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
    OPERAND: tl.constexpr,
    PRECISION: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """All that the fused head does for ``BLOCK_L`` labels of a group; returns the sum of their loss.

    OPERAND: dtype of the matrix operands. SHIFT: power of two that keeps small derivatives out of its subnormal range.
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
    w = tl.trans(_operand(weight, OPERAND))  # [BLOCK_K, BLOCK_L]
    column = tl.load(indices_ptr + group * K + offs_k, mask=slot, other=0)
    x_offs = column.to(tl.int64)[:, None] * stride + tl.arange(0, BLOCK_B)[None, :]
    bias = tl.zeros((BLOCK_L,), tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + label, mask=known, other=0.0).to(tl.float32)
    position = first_position(labels_ptr, search_steps, nnz, label)
    row = row_at(labels_ptr, rows_ptr, nnz, label, position)

    total = tl.zeros((BLOCK_B, BLOCK_L), tl.float32)
    dw = tl.zeros((BLOCK_K, BLOCK_L), tl.float32)
    db = tl.zeros((BLOCK_L,), tl.float32)
    for start in range(0, B, BLOCK_B):
        offs_b = start + tl.arange(0, BLOCK_B)
        mask = slot[:, None] & (offs_b < stride)[None, :]
        x = _operand(tl.load(xt_ptr + x_offs + start, mask=mask, other=0.0), OPERAND)  # [BLOCK_K, BLOCK_B]
        z = tl.dot(tl.trans(x), w, input_precision=PRECISION) + bias[None, :]
        targets, position, row = target_tile(labels_ptr, rows_ptr, nnz, label, position, row, start, B, BLOCK_B, 1)
        value, dz = loss_terms(z, targets, LOSS, NEED_LOSS)
        valid = known[None, :] & (offs_b < B)[:, None]
        dz = tl.where(valid, dz, 0.0)
        if NEED_LOSS:
            total += tl.where(valid, value, 0.0)
        if (dxt_ptr is not None) or NEED_WEIGHT:
            if LOSS != "squared_hinge" or tl.max((dz != 0.0).to(tl.int32)) > 0:
                d = _operand(dz * SHIFT, OPERAND)  # [BLOCK_B, BLOCK_L]
                if NEED_WEIGHT:
                    dw = tl.dot(x, d, dw, input_precision=PRECISION)
                    db += tl.sum(dz, 0)
                if dxt_ptr is not None:
                    part = tl.dot(w, tl.trans(d), input_precision=PRECISION) * (1.0 / SHIFT)
                    add_part(dxt_ptr + x_offs + start, part, mask, ATOMIC)

    if NEED_WEIGHT:
        finish_tile(
            weight_ptr, bias_ptr, dw_ptr, db_ptr, scale_ptr,
            weight_momentum_ptr, weight_moment_ptr, bias_momentum_ptr, bias_moment_ptr,
            label, known, weight_offs, connected, weight, bias, tl.trans(dw) * (1.0 / SHIFT), db,
            lr, momentum, weight_decay, decay, gain, correction, eps, seed, step, K, UPDATE, STOCHASTIC,
        )  # fmt: skip
    return tl.sum(tl.sum(total, 1), 0)
