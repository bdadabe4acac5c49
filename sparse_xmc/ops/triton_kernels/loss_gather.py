"""Fused head, one label at a time: products as element-wise multiplications and sums. For a group size of 1, and for any
float64 layer.

A tile is ``[BLOCK_L, BLOCK_K, BLOCK_B]``: for each of its connections the segment of ``x`` transposed that the batch tile
covers. The segments are loaded once and serve the logits and the weight gradient; the weights stay in registers over
all batch tiles.
"""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._input_gradient import add_part
from sparse_xmc.ops.triton_kernels._loss_terms import mixed_terms, negative_terms
from sparse_xmc.ops.triton_kernels._positives import open_bucket, positive_tile
from sparse_xmc.ops.triton_kernels._rounding import round_nearest
from sparse_xmc.ops.triton_kernels._update import finish_tile


@triton.jit
def gather_tile(tile, layer, batch, positives, objective, dx, gradients, update, TILE: tl.constexpr):
    """All that the fused head does for labels ``tile * BLOCK_L ...``; returns the sum of their loss."""
    K: tl.constexpr = TILE.K
    G: tl.constexpr = TILE.G
    BLOCK_L: tl.constexpr = TILE.BLOCK_L
    BLOCK_K: tl.constexpr = TILE.BLOCK_K
    BLOCK_B: tl.constexpr = TILE.BLOCK_B
    LOSS: tl.constexpr = TILE.LOSS
    NEED_LOSS: tl.constexpr = TILE.NEED_LOSS
    ACC: tl.constexpr = tl.float64 if batch.xt.dtype.element_ty == tl.float64 else tl.float32
    first = tile * BLOCK_L  # int64
    member = tl.arange(0, BLOCK_L)
    label = first + member
    offs_k = tl.arange(0, BLOCK_K)
    known = label < layer.L
    connected = known[:, None] & (offs_k < K)[None, :]
    weight_offs = member[:, None] * K + offs_k[None, :]
    weight_ptrs = layer.weight + first * K + weight_offs
    stored = tl.load(weight_ptrs, mask=connected, other=0.0, eviction_policy=TILE.ONCE)  # [BLOCK_L, BLOCK_K]
    weight = stored.to(ACC)
    index_ptrs = layer.indices + (label // G)[:, None] * K + offs_k[None, :]
    column = tl.load(index_ptrs, mask=connected, other=0)  # [BLOCK_L, BLOCK_K]
    if TILE.WIDE:
        column = column.to(tl.int64)
    else:
        column = column.to(tl.int32)
    x_offs = column[:, :, None] * batch.stride + tl.arange(0, BLOCK_B)[None, None, :]
    if TILE.DX == "rows" or TILE.DX == "dense":
        own = first - dx.first
        if TILE.DX == "rows":
            tl.store(dx.weight + own * K + weight_offs, stored, mask=connected)
        else:
            tl.store(dx.weight + (own + member)[:, None] * dx.D + column, stored, mask=connected)
    position, last, holds_positives = open_bucket(positives, tile * BLOCK_L // TILE.WIDTH, label)

    total = tl.zeros((BLOCK_B,), ACC)
    dw = tl.zeros((BLOCK_L, BLOCK_K), ACC)
    db = tl.zeros((BLOCK_L,), ACC)
    for start in range(0, batch.B, BLOCK_B):
        offs_b = start + tl.arange(0, BLOCK_B)
        mask = connected[:, :, None] & (offs_b < batch.stride)[None, None, :]
        x_ptrs = batch.xt + x_offs + start
        if TILE.EVEN:
            x = tl.load(x_ptrs, eviction_policy=TILE.AGAIN)  # [BLOCK_L, BLOCK_K, BLOCK_B]
        else:
            x = tl.load(x_ptrs, mask=mask, other=0.0, eviction_policy=TILE.AGAIN)  # [BLOCK_L, BLOCK_K, BLOCK_B]
        x = x.to(ACC)
        z = tl.sum(x * weight[:, :, None], 1)
        if not TILE.EVEN:
            # loss and derivative are 0 at minus infinity
            z += tl.where(known[:, None] & (offs_b < batch.B)[None, :], 0.0, float("-inf"))
        if layer.bias is not None:
            # loaded as a tile on purpose: the load's layout gives each logit to one thread, where the sum's layout
            # would have every thread that holds a part of it repeat the loss
            bias_ptrs = layer.bias + label[:, None] + (offs_b * 0)[None, :]
            z += tl.load(bias_ptrs, mask=known[:, None], other=0.0).to(ACC)  # [BLOCK_L, BLOCK_B]
        if holds_positives:
            found, position = positive_tile(positives, last, label, known, position, start, batch.B, BLOCK_B, 0)
            value, dz = mixed_terms(z, found, objective, LOSS, NEED_LOSS)
            if objective.pos_weight is not None:
                of_label = tl.load(objective.pos_weight + first + member, mask=known, other=0.0)  # [BLOCK_L]
                value = tl.where(found, value * of_label[:, None], value)
                dz = tl.where(found, dz * of_label[:, None], dz)
        else:
            value, dz = negative_terms(z, objective, LOSS, NEED_LOSS)
        if objective.sample_weight is not None:
            of_row = tl.load(objective.sample_weight + offs_b, mask=offs_b < batch.B, other=0.0)  # [BLOCK_B]
            value *= of_row[None, :]
            dz *= of_row[None, :]
        if NEED_LOSS:
            total += tl.sum(value, 0)
        if TILE.DX == "rows" or TILE.DX == "dense":
            dz_ptrs = dx.dz + (own + member)[:, None] * batch.stride + offs_b[None, :]
            fits = known[:, None] & (offs_b < batch.stride)[None, :]
            tl.store(dz_ptrs, round_nearest(dz, dx.dz.dtype.element_ty), mask=fits)
        if TILE.DX != "none" or TILE.NEED_WEIGHT:
            if LOSS != "squared_hinge" or tl.max((dz != 0.0).to(tl.int32)) > 0:
                if TILE.NEED_WEIGHT:
                    dw += tl.sum(x * dz[:, None, :], 2)
                    db += tl.sum(dz, 1)
                if TILE.DX == "atomic" or TILE.DX == "private":
                    add_part(dx.dxt + x_offs + start, weight[:, :, None] * dz[:, None, :], mask, TILE)

    if TILE.NEED_WEIGHT:
        finish_tile(layer, gradients, update, first, member, known, weight_offs, connected, dw, db, TILE)
    return tl.sum(total, 0)
