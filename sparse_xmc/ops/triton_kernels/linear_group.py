"""Fixed fan-in linear layer where G > 1 neighbouring labels share their connections: one gather, then ``tl.dot``.

A group's features ``[K, BLOCK_B]`` are gathered once from the feature-major ``x [D, padded(B)]`` and multiplied with
the group's weights. The batch is the M dimension of the products with weights and K that of the weight gradient, for a
group has often fewer labels than the 64 rows that Hopper's wgmma needs. Groups that are short or no power of two are
masked up to ``BLOCK_G``.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.triton_kernels import head_tiling, tuning
from sparse_xmc.ops.triton_kernels._dot import accumulator, dot, dot_options, dot_weight, fp32_precision
from sparse_xmc.ops.triton_kernels._launch import cdiv, padded, power_of_2, ready
from sparse_xmc.ops.triton_kernels._layout import batch_major, empty_logits, feature_major, readable_labels
from sparse_xmc.ops.triton_kernels._quantized import as_stored, decode
from sparse_xmc.ops.triton_kernels._rounding import round_nearest

# tl.dot takes no dimension below 16 on every target
SMALLEST_DOT = 16
WIDEST_TILE = 128  # rows or labels


def _configs(tiles: list[tuple[int, int, int, int]]) -> list[tuning.Config]:
    return [
        {"BLOCK_B": block_b, "BLOCK_K": block_k, "num_warps": warps, "num_stages": stages}
        for block_b, block_k, warps, stages in tiles
    ]


def _suits(config: tuning.Config, shape: tuning.Shape) -> bool:
    """Tiles between a quarter of the problem and all of it.

    float32 products without tensor cores keep their operands in registers: 64 x 32 at most. float64 builds the
    product [BLOCK_B, BLOCK_K, BLOCK_G].
    """
    widest_b, widest_k = {2: (128, 128), 4: (64, 32), 8: (16, 16)}[shape.itemsize]
    widest_b, widest_k = min(shape.B, widest_b), max(min(power_of_2(shape.K), widest_k), 16)
    return (
        widest_b <= 4 * config["BLOCK_B"] <= 4 * widest_b
        and widest_k <= 4 * config["BLOCK_K"] <= 4 * widest_k
        and config["BLOCK_B"] * config["BLOCK_K"] <= 8192
    )


def _suits_input(config: tuning.Config, shape: tuning.Shape) -> bool:
    """Also, before sm_90: 64 rows at most where a weight of many labels is multiplied as two numbers, or rows take several
    tiles; a tile of 128 spills. float32 products that take several tiles of labels spill in all but small ones."""
    if shape.itemsize == 4 and shape.G > 64 and (config["BLOCK_B"] > 32 or config["BLOCK_K"] > 16):
        return False
    many = shape.terms > 1 and shape.G > 32
    most = 64 if not shape.room and (many or shape.B > WIDEST_TILE) else WIDEST_TILE
    return config["BLOCK_B"] <= most and _suits(config, shape)


_CONFIGS = _configs(
    [
        (128, 64, 4, 2),
        (64, 64, 4, 2),
        (128, 32, 4, 2),
        (64, 32, 4, 2),
        (64, 128, 4, 2),
        (32, 64, 4, 2),
        (32, 32, 4, 2),
        (128, 16, 4, 2),
        (64, 16, 4, 2),
        (32, 16, 4, 2),
        (16, 64, 4, 2),
        (16, 16, 4, 2),
    ]
)


@triton.jit
def _place(tile, groups, MOST: tl.constexpr, BLOCK_B: tl.constexpr):
    """The group and the first row of the batch of a tile; groups come first."""
    if MOST <= BLOCK_B:
        return tile.to(tl.int64), tile * 0
    else:
        return (tile % groups).to(tl.int64), tile // groups * BLOCK_B


@triton.jit
def _features(
    xt_ptr, stride, indices_ptr, offs_k, offs_b, K: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """``x [BLOCK_K, BLOCK_B]`` of the connections ``offs_k`` of a group, whose indices begin at ``indices_ptr``."""
    inside = offs_k < K
    if K % BLOCK_K == 0:
        column = tl.load(indices_ptr + offs_k)  # [BLOCK_K]
    else:
        column = tl.load(indices_ptr + offs_k, mask=inside, other=0)  # [BLOCK_K]
    if WIDE:
        column = column.to(tl.int64)
    else:
        column = column.to(tl.int32)
    x_ptrs = xt_ptr + (column[:, None] * stride + offs_b[None, :])
    if K % BLOCK_K == 0 and ROWS % BLOCK_B == 0:
        x = tl.load(x_ptrs)  # [BLOCK_K, BLOCK_B]
    else:
        x = tl.load(x_ptrs, mask=inside[:, None] & (offs_b < stride)[None, :], other=0.0)  # [BLOCK_K, BLOCK_B]
    return x


@triton.jit(do_not_specialize=["B"])
def forward_kernel(
    xt_ptr,  # [D, stride_x], zeros from column B on
    stride_x,
    weight_ptr,  # [L, K]
    indices_ptr,  # [R, K]
    bias_ptr,  # [L] or None
    scale_ptr,  # [L] with 8-bit weights, else None
    y_ptr,  # [B, stride_y]; what is written from column L on does not count
    stride_y,
    B,
    L,
    R,
    K: tl.constexpr,
    G: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,  # whether offsets pass 2^31
    ROWS: tl.constexpr,  # power of two that divides B
    MOST: tl.constexpr,  # power of two that B does not pass
    BLOCK_G: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid = tl.program_id(0)
    chunks: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    group, start_b = _place(pid // chunks, R, MOST, BLOCK_B)
    first = group * G + pid % chunks * BLOCK_G
    offs_b = start_b + tl.arange(0, BLOCK_B)
    member = tl.arange(0, BLOCK_G)
    room = G - pid % chunks * BLOCK_G  # labels of the group from the tile's first on
    known = member < tl.minimum(L - first, room).to(tl.int32)

    acc = tl.zeros((BLOCK_B, BLOCK_G), ACC)
    for start_k in range(0, K, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        x = _features(xt_ptr, stride_x, indices_ptr + group * K, offs_k, offs_b, K, WIDE, ROWS, BLOCK_K, BLOCK_B)
        w_ptrs = weight_ptr + first * K + member[:, None] * K + offs_k[None, :]
        if K % BLOCK_K == 0:
            weight = tl.load(w_ptrs, mask=known[:, None], other=0)  # [BLOCK_G, BLOCK_K]
        else:
            weight = tl.load(w_ptrs, mask=known[:, None] & (offs_k < K)[None, :], other=0)  # [BLOCK_G, BLOCK_K]
        acc = dot_weight(tl.trans(x), tl.trans(decode(weight)), acc, DOT, SPLIT, PRECISION)
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + first + member, mask=known, other=0.0)[None, :]  # [BLOCK_G]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + first + member, mask=known, other=0.0).to(ACC)[None, :]  # [BLOCK_G]

    row = tl.arange(0, BLOCK_B)[:, None]
    if WIDE:
        row = row.to(tl.int64)
    y_ptrs = y_ptr + start_b.to(tl.int64) * stride_y + first + row * stride_y + member[None, :]
    inside = (member < tl.minimum(stride_y - first, room).to(tl.int32))[None, :]
    if ROWS % BLOCK_B != 0:
        inside = inside & (offs_b < B)[:, None]
    tl.store(y_ptrs, round_nearest(acc, y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["B", "first"])
def backward_input_kernel(
    dy_ptr,  # [B, readable]
    stride_db,
    stride_dl,
    readable,  # labels that may be read; from L on (GAPS) they do not count
    weight_ptr,  # [L, K]
    indices_ptr,  # [R, K]
    dxt_ptr,  # ATOMIC: [D, stride_x] in ACC, zeros, added to; else [num_groups * K, stride_x], one row per connection
    stride_x,
    B,
    L,
    first,  # first group
    num_groups,
    K: tl.constexpr,
    G: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    GAPS: tl.constexpr,
    ATOMIC: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    MOST: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid = tl.program_id(0)
    chunks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    offs_k = (pid % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
    local, start_b = _place(pid // chunks, num_groups, MOST, BLOCK_B)
    group = first + local
    offs_b = start_b + tl.arange(0, BLOCK_B)
    mask_k = offs_k < K
    member = tl.arange(0, BLOCK_G)
    row = tl.arange(0, BLOCK_B)
    if WIDE:
        row = row.to(tl.int64)
        member_offset = member.to(tl.int64) * stride_dl
    else:
        member_offset = member * stride_dl
    dy_offs = row[:, None] * stride_db + member_offset[None, :]

    sums = tl.zeros((BLOCK_B, BLOCK_K), ACC)
    for start_g in tl.static_range(0, G, BLOCK_G):
        label = group * G + start_g
        dy_ptrs = dy_ptr + start_b.to(tl.int64) * stride_db + label * stride_dl + dy_offs
        inside = (member < tl.minimum(readable - label, G - start_g).to(tl.int32))[None, :]
        if ROWS % BLOCK_B != 0:
            inside = inside & (offs_b < B)[:, None]
        dy = tl.load(dy_ptrs, mask=inside, other=0.0)  # [BLOCK_B, BLOCK_G]
        known = member < tl.minimum(L - label, G - start_g).to(tl.int32)
        if GAPS:
            if label + BLOCK_G > L:  # only behind the last label
                dy = tl.where(known[None, :], dy, 0.0)
        w_ptrs = weight_ptr + label * K + (member[:, None] * K + offs_k[None, :])
        if K % BLOCK_K == 0:
            weight = tl.load(w_ptrs, mask=known[:, None], other=0.0)  # [BLOCK_G, BLOCK_K]
        else:
            weight = tl.load(w_ptrs, mask=known[:, None] & mask_k[None, :], other=0.0)  # [BLOCK_G, BLOCK_K]
        sums = dot_weight(dy, weight, sums, DOT, SPLIT, PRECISION)

    mask = mask_k[:, None] & (offs_b < stride_x)[None, :]
    if ATOMIC:
        column = tl.load(indices_ptr + group * K + offs_k, mask=mask_k, other=0)  # [BLOCK_K]
        if WIDE:
            column = column.to(tl.int64)
        else:
            column = column.to(tl.int32)
        dx_ptrs = dxt_ptr + (column[:, None] * stride_x + offs_b[None, :])
        if K % BLOCK_K == 0 and ROWS % BLOCK_B == 0:
            tl.atomic_add(dx_ptrs, tl.trans(sums), sem="relaxed")
        else:
            tl.atomic_add(dx_ptrs, tl.trans(sums), mask=mask, sem="relaxed")
    else:
        dx_ptrs = dxt_ptr + (local * K + offs_k)[:, None] * stride_x + offs_b[None, :]
        tl.store(dx_ptrs, tl.trans(sums), mask=mask)


@triton.jit(do_not_specialize=["B"])
def backward_weight_kernel(
    dy_ptr,  # [B, readable]
    stride_db,
    stride_dl,
    readable,  # labels that may be read; from L on they do not count
    xt_ptr,  # [D, stride_x], zeros from column B on
    stride_x,
    indices_ptr,  # [R, K]
    dw_ptr,  # [L, K]
    B,
    L,
    K: tl.constexpr,
    G: tl.constexpr,
    ACC: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid = tl.program_id(0)
    chunks_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    chunks_g: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    offs_k = (pid % chunks_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    start_g = (pid // chunks_k % chunks_g) * BLOCK_G
    group = (pid // (chunks_k * chunks_g)).to(tl.int64)
    first = group * G + start_g
    member = tl.arange(0, BLOCK_G)
    row = tl.arange(0, BLOCK_B)
    if WIDE:
        row = row.to(tl.int64)
        member_offset = member.to(tl.int64) * stride_dl
    else:
        member_offset = member * stride_dl
    dy_ptrs = dy_ptr + first * stride_dl + (row[:, None] * stride_db + member_offset[None, :])
    # what lies behind the last label ends in columns that are not stored
    readable_here = (member < tl.minimum(readable - first, G - start_g).to(tl.int32))[None, :]

    acc = tl.zeros((BLOCK_K, BLOCK_G), ACC)
    for start_b in range(0, B, BLOCK_B):
        offs_b = start_b + tl.arange(0, BLOCK_B)
        x = _features(xt_ptr, stride_x, indices_ptr + group * K, offs_k, offs_b, K, WIDE, ROWS, BLOCK_K, BLOCK_B)
        inside = readable_here
        if ROWS % BLOCK_B != 0:
            inside = inside & (offs_b < B)[:, None]
        dy = tl.load(dy_ptrs, mask=inside, other=0.0)  # [BLOCK_B, BLOCK_G]
        dy_ptrs += tl.full((), BLOCK_B, tl.int64) * stride_db
        acc = dot(x, dy, acc, DOT, PRECISION)

    known = member < tl.minimum(L - first, G - start_g).to(tl.int32)
    dw_ptrs = dw_ptr + first * K + (member[None, :] * K + offs_k[:, None])
    tl.store(dw_ptrs, round_nearest(acc, dw_ptr.dtype.element_ty), mask=(offs_k < K)[:, None] & known[None, :])


FORWARD = tuning.Tuned(forward_kernel, _CONFIGS, _suits)
BACKWARD_INPUT = tuning.Tuned(backward_input_kernel, _CONFIGS, _suits_input)
BACKWARD_WEIGHT = tuning.Tuned(backward_weight_kernel, _CONFIGS, _suits)


def forward(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    group_size: int,
    weight_scale: Tensor | None = None,
    xt: Tensor | None = None,
) -> Tensor:
    """x [B, D] -> y [B, L] in x's dtype. xt: x feature-major, where it is there already."""
    (B, D), (L, K), R = x.shape, weight.shape, indices.shape[0]
    y = empty_logits(x, L)
    if B == 0:
        return y
    xt, stored = feature_major(x) if xt is None else xt, as_stored(weight)
    arguments = (xt, xt.stride(0), stored, indices, bias, weight_scale, y, y.stride(0), B, L, R)
    dtypes = (x.dtype, weight.dtype, indices.dtype, bias is not None and bias.dtype, weight_scale is None)
    key = (B, D, L, K, group_size, dtypes, fp32_precision(), x.device)
    launch = FORWARD.plans.get(key)
    if launch is None:
        constants, itemsize = _constants(K, group_size, x.dtype, weight.dtype)
        constants |= _extent(B, D * xt.stride(0), y.stride(0))
        parts = cdiv(group_size, constants["BLOCK_G"]) * R

        def grid(config: tuning.Config) -> tuple[int, ...]:
            return (parts * cdiv(B, config["BLOCK_B"]),)

        shape = tuning.Shape.of(B, L, D, K, group_size, itemsize)
        launch = FORWARD.choose(key, shape, grid, constants, arguments)
    launch(ready(stored, indices, bias, weight_scale), *arguments)
    return y


def backward_input(dy: Tensor, weight: Tensor, indices: Tensor, in_features: int, group_size: int) -> Tensor:
    """dy [B, L] -> dx [B, D] in dy's dtype: one atomic row per connection of a group, in no fixed order."""
    B, R = dy.shape[0], indices.shape[0]
    dxt = torch.zeros(in_features, padded(B), dtype=compute_dtype(dy.dtype), device=dy.device)
    if B:
        _multiply_weight_(dy, weight, indices, dxt, in_features, group_size, 0, R, atomic=True)
    return batch_major(dxt, B, dy.dtype)


def connection_sums_(
    dy: Tensor, weight: Tensor, indices: Tensor, out: Tensor, in_features: int, group_size: int, first: int, last: int
) -> None:
    """Writes to ``out [(last - first) * K, padded(B)]`` what each connection of the groups adds to its feature."""
    _multiply_weight_(dy, weight, indices, out, in_features, group_size, first, last, atomic=False)


def _multiply_weight_(
    dy: Tensor,
    weight: Tensor,
    indices: Tensor,
    out: Tensor,
    in_features: int,
    group_size: int,
    first: int,
    last: int,
    *,
    atomic: bool,
) -> None:
    (B, L), K, strides = dy.shape, weight.shape[1], dy.stride()
    groups, readable = last - first, readable_labels(dy)
    stride = out.stride(0)
    arguments = (dy, *strides, readable, weight, indices, out, stride, B, L, first, groups)
    dtypes = (dy.dtype, weight.dtype, indices.dtype)
    key = (B, in_features, L, K, group_size, groups, strides, readable, atomic, dtypes, fp32_precision(), dy.device)
    launch = BACKWARD_INPUT.plans.get(key)
    if launch is None:
        constants, itemsize = _constants(K, group_size, dy.dtype, weight.dtype)
        constants |= {"GAPS": readable > L, "ATOMIC": atomic, **_extent(B, in_features * stride, *strides)}

        def grid(config: tuning.Config) -> tuple[int, ...]:
            return (cdiv(K, config["BLOCK_K"]) * groups * cdiv(stride, config["BLOCK_B"]),)

        shape = tuning.Shape.of(B, L, in_features, K, group_size, itemsize)
        shape = shape._replace(terms=1 + constants["SPLIT"], room=head_tiling.has_room(dy.device))
        launch = BACKWARD_INPUT.choose(key, shape, grid, constants, arguments, scratch=out if atomic else None)
    launch(ready(dy, weight, indices), *arguments)


def backward_weight(
    dy: Tensor, x: Tensor, indices: Tensor, group_size: int, dtype: torch.dtype, xt: Tensor | None = None
) -> Tensor:
    """dy [B, L], x [B, D] -> dw [L, K] in ``dtype``. xt: as in ``forward``."""
    (B, L), D, (R, K), strides = dy.shape, x.shape[1], indices.shape, dy.stride()
    dw = torch.empty(L, K, dtype=dtype, device=dy.device)
    xt, readable = feature_major(x) if xt is None else xt, readable_labels(dy)
    arguments = (dy, *strides, readable, xt, xt.stride(0), indices, dw, B, L)
    dtypes = (dy.dtype, x.dtype, indices.dtype, dtype)
    key = (B, D, L, K, group_size, strides, readable, dtypes, fp32_precision(), dy.device)
    launch = BACKWARD_WEIGHT.plans.get(key)
    if launch is None:
        constants, itemsize = _constants(K, group_size, x.dtype, dy.dtype)
        constants |= _extent(B, D * xt.stride(0), *strides)
        del constants["SPLIT"], constants["MOST"]
        parts = cdiv(group_size, constants["BLOCK_G"]) * R

        def grid(config: tuning.Config) -> tuple[int, ...]:
            return (cdiv(K, config["BLOCK_K"]) * parts,)

        shape = tuning.Shape.of(B, L, D, K, group_size, itemsize)
        launch = BACKWARD_WEIGHT.choose(key, shape, grid, constants, arguments)
    launch(ready(dy, indices), *arguments)
    return dw


def _constants(K: int, group_size: int, activation: torch.dtype, other: torch.dtype) -> tuple[dict[str, Any], int]:
    """Constants of a kernel that multiplies these dtypes, and the bytes of an operand."""
    options = dot_options(activation, other)
    largest = SMALLEST_DOT if activation == torch.float64 else 64
    block_g = max(SMALLEST_DOT, min(power_of_2(group_size), largest))
    constants = {"K": K, "G": group_size, "ACC": accumulator(activation), "BLOCK_G": block_g, **options}
    return constants, options["DOT"].primitive_bitwidth // 8


def _extent(B: int, features: int, *strides: int) -> dict[str, Any]:
    """Whether offsets in a matrix of features, or in a tile of one with these strides, need 64 bits; and powers of two that
    divide the rows of the batch and that they do not pass, as far as tiles go."""
    wide = max(features, 2 * WIDEST_TILE * max(strides)) >= 1 << 31
    return {"WIDE": wide, "ROWS": min(B & -B, WIDEST_TILE), "MOST": min(power_of_2(B), 2 * WIDEST_TILE)}
