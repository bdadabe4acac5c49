"""Fused head, one group of labels at a time: products as ``tl.dot``. For labels that share their connections.

A tile is a group, or ``BLOCK_L`` labels of it: the ``[BLOCK_K, BLOCK_B]`` segments of ``x`` transposed are gathered once
for all of them. The batch is the long side of the logits' product and the connections that of the two gradients', so
that Hopper's wgmma (64 rows) applies. Loss and bias gradient are added up element by element and reduced once.
"""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._dot import dot, dot_terms
from sparse_xmc.ops.triton_kernels._input_gradient import add_part
from sparse_xmc.ops.triton_kernels._loss_terms import mixed_terms, negative_terms
from sparse_xmc.ops.triton_kernels._positives import open_bucket, positive_tile
from sparse_xmc.ops.triton_kernels._rounding import round_nearest
from sparse_xmc.ops.triton_kernels._update import finish_tile


@triton.jit
def group_tile(tile, layer, batch, positives, objective, dx, gradients, update, TILE: tl.constexpr):
    """All that the fused head does for ``BLOCK_L`` labels of a group; returns the sum of their loss."""
    K: tl.constexpr = TILE.K
    G: tl.constexpr = TILE.G
    BLOCK_L: tl.constexpr = TILE.BLOCK_L
    BLOCK_K: tl.constexpr = TILE.BLOCK_K
    BLOCK_B: tl.constexpr = TILE.BLOCK_B
    LOSS: tl.constexpr = TILE.LOSS
    NEED_LOSS: tl.constexpr = TILE.NEED_LOSS
    DOT: tl.constexpr = TILE.DOT
    TERMS: tl.constexpr = TILE.TERMS
    PRECISION: tl.constexpr = TILE.PRECISION
    PARTS: tl.constexpr = (G + BLOCK_L - 1) // BLOCK_L
    group = tile // PARTS
    first = group * G + tile % PARTS * BLOCK_L  # int64
    member = tl.arange(0, BLOCK_L)
    label = first + member
    offs_k = tl.arange(0, BLOCK_K)
    slot = offs_k < K
    known = member < tl.minimum(layer.L - first, G - tile % PARTS * BLOCK_L).to(tl.int32)
    connected = known[:, None] & slot[None, :]
    weight_offs = member[:, None] * K + offs_k[None, :]
    weight_ptrs = layer.weight + first * K + weight_offs
    weight = tl.load(weight_ptrs, mask=connected, other=0.0, eviction_policy=TILE.ONCE)  # [BLOCK_L, BLOCK_K]
    if TERMS > 1:
        weight = weight.to(tl.float32)
    weight = tl.trans(weight)
    if TILE.EVEN:
        column = tl.load(layer.indices + group * K + offs_k)  # [BLOCK_K]
    else:
        column = tl.load(layer.indices + group * K + offs_k, mask=slot, other=0)  # [BLOCK_K]
    if TILE.WIDE:
        column = column.to(tl.int64)
    else:
        column = column.to(tl.int32)
    x_offs = column[:, None] * batch.stride + tl.arange(0, BLOCK_B)[None, :]
    # minus infinity for what does not exist: loss and derivative are 0 there
    if layer.bias is None:
        bias = tl.where(known, 0.0, float("-inf"))
    else:
        bias = tl.load(layer.bias + first + member, mask=known, other=float("-inf")).to(tl.float32)  # [BLOCK_L]
    if objective.pos_weight is not None:
        pos_weight = tl.load(objective.pos_weight + first + member, mask=known, other=0.0)  # [BLOCK_L]
    position, last, holds_positives = open_bucket(positives, group, label)

    total = tl.zeros((BLOCK_B,), tl.float32)
    dw = tl.zeros((BLOCK_K, BLOCK_L), tl.float32)
    db = tl.zeros((BLOCK_B, BLOCK_L), tl.float32)
    zero_x = tl.zeros((BLOCK_K, BLOCK_B), tl.float32)
    for start in range(0, batch.B, BLOCK_B):
        offs_b = start + tl.arange(0, BLOCK_B)
        mask = slot[:, None] & (offs_b < batch.stride)[None, :]
        x_ptrs = batch.xt + x_offs + start
        if TILE.EVEN:
            x = tl.load(x_ptrs, eviction_policy=TILE.AGAIN)  # [BLOCK_K, BLOCK_B]
        else:
            x = tl.load(x_ptrs, mask=mask, other=0.0, eviction_policy=TILE.AGAIN)  # [BLOCK_K, BLOCK_B]
        z = tl.broadcast_to(bias[None, :], (BLOCK_B, BLOCK_L))
        if not TILE.EVEN:
            z += tl.where(offs_b < batch.B, 0.0, float("-inf"))[:, None]
        z = dot_terms(tl.trans(x), weight, z, DOT, TERMS, PRECISION)
        if holds_positives:
            found, position = positive_tile(positives, last, label, known, position, start, batch.B, BLOCK_B, 1)
            value, dz = mixed_terms(z, found, objective, LOSS, NEED_LOSS)
            if objective.pos_weight is not None:
                value = tl.where(found, value * pos_weight[None, :], value)
                dz = tl.where(found, dz * pos_weight[None, :], dz)
        else:
            value, dz = negative_terms(z, objective, LOSS, NEED_LOSS)
        if objective.sample_weight is not None:
            of_row = tl.load(objective.sample_weight + offs_b, mask=offs_b < batch.B, other=0.0)  # [BLOCK_B]
            value *= of_row[:, None]
            dz *= of_row[:, None]
        if NEED_LOSS:
            total += tl.sum(value, 1)
        if TILE.DX != "none" or TILE.NEED_WEIGHT:
            if LOSS != "squared_hinge" or tl.max((dz != 0.0).to(tl.int32)) > 0:
                if TILE.NEED_WEIGHT:
                    db += dz
                    dw = dot_terms(x, dz * TILE.SHIFT, dw, DOT, TERMS, PRECISION)
                if TILE.DX != "none":
                    narrow = tl.trans(round_nearest(dz * TILE.SHIFT, DOT))
                    part = dot(round_nearest(weight, DOT), narrow, zero_x, DOT, PRECISION)
                    add_part(dx.dxt + x_offs + start, part * (1.0 / TILE.SHIFT), mask, TILE)

    if TILE.NEED_WEIGHT:
        dw = tl.trans(dw) * (1.0 / TILE.SHIFT)
        db = tl.sum(db, 0)
        finish_tile(layer, gradients, update, first, member, known, weight_offs, connected, dw, db, TILE)
    return tl.sum(total, 0)
