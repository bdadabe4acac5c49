"""The kernel of the fused head: every program walks over label tiles; no ``[B, L]`` tensor, ever."""

import triton
import triton.language as tl

from sparse_xmc.ops.triton_kernels._structs import (
    Batch,
    Gradients,
    InputGradient,
    Layer,
    Objective,
    Positives,
    Update,
    tile_of,
)
from sparse_xmc.ops.triton_kernels.loss_gather import gather_tile
from sparse_xmc.ops.triton_kernels.loss_group import group_tile


@triton.jit
def _tile(tile, layer, batch, positives, objective, dx, gradients, update, TILE: tl.constexpr):
    if TILE.DOT is None:
        return gather_tile(tile, layer, batch, positives, objective, dx, gradients, update, TILE)
    else:
        return group_tile(tile, layer, batch, positives, objective, dx, gradients, update, TILE)


@triton.jit(do_not_specialize=["B", "L", "first_tile", "num_tiles", "seed", "step"])
def fused_head(
    xt_ptr,  # [D, stride], zeros from column B on
    weight_ptr,  # [L, K]
    indices_ptr,  # [ceil(L / G), K]
    bias_ptr,  # [L] | None
    labels_ptr,  # [nnz] ascending
    rows_ptr,  # [nnz]
    starts_ptr,  # [buckets + 1]
    pos_weight_ptr,  # [L] | None
    sample_weight_ptr,  # [B] | None
    sums_ptr,  # [programs] | None
    dxt_ptr,  # DX = "atomic": [D, stride]; "private": [programs, D, stride] | None
    dz_ptr,  # DX = "rows", "dense": [labels of the launch, stride] | None
    old_weight_ptr,  # DX = "rows": [labels of the launch, K]; "dense": [labels of the launch, D], zeros | None
    dw_ptr,  # [L, K] | None
    db_ptr,  # [L] | None
    scale_ptr,  # 0-dim: of the parameters' gradients | None
    bad_ptr,  # 0-dim int32 | None: above 0 nothing is updated
    weight_momentum_ptr,  # [L, K] | None
    weight_moment_ptr,  # [L] | None
    bias_momentum_ptr,  # [L] | None
    bias_moment_ptr,  # [L] | None
    correction_ptr,  # 0-dim | None: 1
    lr_ptr,  # 0-dim float64 | None: lr counts
    step_ptr,  # 0-dim int64 | None: step counts
    B,
    D,
    stride,
    L,
    first_tile,
    num_tiles,  # one past the last tile of the launch
    gamma_pos: tl.float64,
    gamma_neg: tl.float64,
    clip: tl.float64,
    lr: tl.float64,
    momentum: tl.float64,
    weight_decay: tl.float64,
    decay: tl.float64,
    gain: tl.float64,
    eps: tl.float64,
    seed: tl.int64,
    step: tl.int64,
    K: tl.constexpr,
    G: tl.constexpr,
    LOSS: tl.constexpr,
    NEED_WEIGHT: tl.constexpr,
    UPDATE: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DX: tl.constexpr,
    EVEN: tl.constexpr,
    SINGLE: tl.constexpr,  # every program has one tile
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    DOT: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
    HINTS: tl.constexpr,  # whether loads have eviction policies
):
    NEED_LOSS: tl.constexpr = sums_ptr is not None
    ACC: tl.constexpr = tl.float64 if xt_ptr.dtype.element_ty == tl.float64 else tl.float32
    TILE: tl.constexpr = tile_of(
        K, G, LOSS, NEED_LOSS, NEED_WEIGHT, UPDATE, STOCHASTIC, DX, EVEN, WIDE, WIDTH,
        DOT, TERMS, PRECISION, SHIFT, BLOCK_L, BLOCK_K, BLOCK_B, HINTS,
    )  # fmt: skip
    first = tl.program_id(0).to(tl.int64)
    if DX == "private":
        dxt_ptr += first * D * stride
    correction = tl.full((), 1.0, ACC)
    if correction_ptr is not None:
        correction = tl.load(correction_ptr).to(ACC)  # 0-dim
    if lr_ptr is not None:
        lr = tl.load(lr_ptr)  # 0-dim
    if step_ptr is not None:
        step = tl.load(step_ptr)  # 0-dim
    scale = tl.full((), 1.0, ACC)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr)  # 0-dim
    if bad_ptr is not None:
        scale = tl.where(tl.load(bad_ptr) > 0, float("nan"), scale)  # 0-dim
    layer = Layer(weight_ptr, indices_ptr, bias_ptr, L)
    batch = Batch(xt_ptr, B, stride)
    positives = Positives(labels_ptr, rows_ptr, starts_ptr)
    gammas = tl.full((), gamma_pos, ACC), tl.full((), gamma_neg, ACC)
    objective = Objective(pos_weight_ptr, sample_weight_ptr, gammas[0], gammas[1], tl.full((), clip, ACC))
    dx = InputGradient(dxt_ptr, dz_ptr, old_weight_ptr, first_tile.to(tl.int64) * BLOCK_L, D)
    gradients = Gradients(dw_ptr, db_ptr, scale)
    update = Update(
        weight_momentum_ptr, weight_moment_ptr, bias_momentum_ptr, bias_moment_ptr,
        lr, momentum, weight_decay, decay, gain, correction, eps, seed, step,
    )  # fmt: skip
    if SINGLE:
        total = _tile(first + first_tile, layer, batch, positives, objective, dx, gradients, update, TILE)
    else:
        total = tl.full((), 0.0, ACC)
        for tile in range(first + first_tile, num_tiles, tl.num_programs(0)):
            total += _tile(tile, layer, batch, positives, objective, dx, gradients, update, TILE)
            if DX == "private":
                tl.debug_barrier()  # the next tile's read-modify-write may touch what another thread has just written
    if NEED_LOSS:
        tl.store(sums_ptr + first, total)
