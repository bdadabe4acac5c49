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
from sparse_xmc.ops.triton_kernels import tuning
from sparse_xmc.ops.triton_kernels._dot import accumulator, dot, dot_options, dot_weight, fp32_precision
from sparse_xmc.ops.triton_kernels._launch import cdiv, on_device, padded, power_of_2, ready
from sparse_xmc.ops.triton_kernels._layout import batch_major, empty_logits, feature_major, readable_labels
from sparse_xmc.ops.triton_kernels._quantized import as_stored, decode
from sparse_xmc.ops.triton_kernels._rounding import round_nearest

# tl.dot takes no dimension below 16 on every target
SMALLEST_DOT = 16


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
    BLOCK_G: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid = tl.program_id(0)
    chunks: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    offs_g = (pid % chunks) * BLOCK_G + tl.arange(0, BLOCK_G)
    group = ((pid // chunks) % R).to(tl.int64)
    offs_b = (pid // (chunks * R)).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    labels = group * G + offs_g
    mask_g = (offs_g < G) & (labels < L)
    mask_x = (offs_b < stride_x)[None, :]

    acc = tl.zeros((BLOCK_B, BLOCK_G), ACC)
    for start_k in range(0, K, BLOCK_K):
        offs_k = start_k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < K
        rows = tl.load(indices_ptr + group * K + offs_k, mask=mask_k, other=0).to(tl.int64)  # [BLOCK_K]
        # [BLOCK_K, BLOCK_B]
        x = tl.load(xt_ptr + rows[:, None] * stride_x + offs_b[None, :], mask=mask_k[:, None] & mask_x, other=0.0)
        w_ptrs = weight_ptr + labels[:, None] * K + offs_k[None, :]
        weight = decode(tl.load(w_ptrs, mask=mask_g[:, None] & mask_k[None, :], other=0))  # [BLOCK_G, BLOCK_K]
        acc = dot_weight(tl.trans(x), tl.trans(weight), acc, DOT, SPLIT, PRECISION)
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + labels, mask=mask_g, other=0.0)[None, :]  # [BLOCK_G]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + labels, mask=mask_g, other=0.0).to(ACC)[None, :]  # [BLOCK_G]

    y_ptrs = y_ptr + offs_b[:, None] * stride_y + labels[None, :]
    inside = (offs_b < B)[:, None] & ((offs_g < G) & (labels < stride_y))[None, :]
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
    BLOCK_G: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid = tl.program_id(0)
    chunks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    offs_k = (pid % chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
    local = ((pid // chunks) % num_groups).to(tl.int64)
    group = first + local
    offs_b = (pid // (chunks * num_groups)).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_k = offs_k < K
    mask_x = mask_k[:, None] & (offs_b < stride_x)[None, :]

    sums = tl.zeros((BLOCK_B, BLOCK_K), ACC)
    for start_g in tl.static_range(0, G, BLOCK_G):
        offs_g = start_g + tl.arange(0, BLOCK_G)
        labels = group * G + offs_g
        mask_g = (offs_g < G) & (labels < L)
        dy_ptrs = dy_ptr + offs_b[:, None] * stride_db + labels[None, :] * stride_dl
        inside = (offs_b < B)[:, None] & ((offs_g < G) & (labels < readable))[None, :]
        dy = tl.load(dy_ptrs, mask=inside, other=0.0)  # [BLOCK_B, BLOCK_G]
        if GAPS:
            dy = tl.where(mask_g[None, :], dy, 0.0)
        w_ptrs = weight_ptr + labels[:, None] * K + offs_k[None, :]
        weight = tl.load(w_ptrs, mask=mask_g[:, None] & mask_k[None, :], other=0.0)  # [BLOCK_G, BLOCK_K]
        sums = dot_weight(dy, weight, sums, DOT, SPLIT, PRECISION)

    if ATOMIC:
        rows = tl.load(indices_ptr + group * K + offs_k, mask=mask_k, other=0).to(tl.int64)  # [BLOCK_K]
        dx_ptrs = dxt_ptr + rows[:, None] * stride_x + offs_b[None, :]
        tl.atomic_add(dx_ptrs, tl.trans(sums), mask=mask_x, sem="relaxed")
    else:
        dx_ptrs = dxt_ptr + (local * K + offs_k)[:, None] * stride_x + offs_b[None, :]
        tl.store(dx_ptrs, tl.trans(sums), mask=mask_x)


@triton.jit(do_not_specialize=["B"])
def backward_weight_kernel(
    dy_ptr,  # [B, readable]
    stride_db,
    stride_dl,
    readable,  # labels that may be read; from L on (GAPS) they do not count
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
    GAPS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid = tl.program_id(0)
    chunks_k: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    chunks_g: tl.constexpr = (G + BLOCK_G - 1) // BLOCK_G
    offs_k = (pid % chunks_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    offs_g = (pid // chunks_k % chunks_g) * BLOCK_G + tl.arange(0, BLOCK_G)
    group = (pid // (chunks_k * chunks_g)).to(tl.int64)
    labels = group * G + offs_g
    mask_k = offs_k < K
    mask_g = (offs_g < G) & (labels < L)
    rows = tl.load(indices_ptr + group * K + offs_k, mask=mask_k, other=0).to(tl.int64)  # [BLOCK_K]

    acc = tl.zeros((BLOCK_K, BLOCK_G), ACC)
    for start_b in range(0, B, BLOCK_B):
        offs_b = (start_b + tl.arange(0, BLOCK_B)).to(tl.int64)
        x_mask = mask_k[:, None] & (offs_b < stride_x)[None, :]
        x = tl.load(xt_ptr + rows[:, None] * stride_x + offs_b[None, :], mask=x_mask, other=0.0)  # [BLOCK_K, BLOCK_B]
        dy_ptrs = dy_ptr + offs_b[:, None] * stride_db + labels[None, :] * stride_dl
        inside = (offs_b < B)[:, None] & ((offs_g < G) & (labels < readable))[None, :]
        dy = tl.load(dy_ptrs, mask=inside, other=0.0)  # [BLOCK_B, BLOCK_G]
        if GAPS:
            dy = tl.where(mask_g[None, :], dy, 0.0)
        acc = dot(x, dy, acc, DOT, PRECISION)

    dw_ptrs = dw_ptr + labels[None, :] * K + offs_k[:, None]
    tl.store(dw_ptrs, round_nearest(acc, dw_ptr.dtype.element_ty), mask=mask_k[:, None] & mask_g[None, :])


FORWARD = tuning.Tuned(forward_kernel, _CONFIGS, _suits)
BACKWARD_INPUT = tuning.Tuned(backward_input_kernel, _CONFIGS, _suits)
BACKWARD_WEIGHT = tuning.Tuned(backward_weight_kernel, _CONFIGS, _suits)


def forward(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    group_size: int,
    weight_scale: Tensor | None = None,
) -> Tensor:
    """x [B, D] -> y [B, L] in x's dtype."""
    (B, D), (L, K), R = x.shape, weight.shape, indices.shape[0]
    y = empty_logits(x, L)
    if B == 0:
        return y
    xt, stored = feature_major(x), as_stored(weight)
    arguments = (xt, xt.stride(0), stored, indices, bias, weight_scale, y, y.stride(0), B, L, R)
    dtypes = (x.dtype, weight.dtype, indices.dtype, bias is not None and bias.dtype, weight_scale is None)
    key = (B, D, L, K, group_size, dtypes, fp32_precision(), x.device)
    launch = FORWARD.plans.get(key)
    with on_device(x):
        if launch is None:
            constants, itemsize = _constants(K, group_size, x.dtype, weight.dtype)
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
    with on_device(dy):
        if launch is None:
            constants, itemsize = _constants(K, group_size, dy.dtype, weight.dtype)
            constants |= {"GAPS": readable > L, "ATOMIC": atomic}

            def grid(config: tuning.Config) -> tuple[int, ...]:
                return (cdiv(K, config["BLOCK_K"]) * groups * cdiv(stride, config["BLOCK_B"]),)

            shape = tuning.Shape.of(B, L, in_features, K, group_size, itemsize)
            launch = BACKWARD_INPUT.choose(key, shape, grid, constants, arguments, scratch=out if atomic else None)
        launch(ready(dy, weight, indices), *arguments)


def backward_weight(dy: Tensor, x: Tensor, indices: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    """dy [B, L], x [B, D] -> dw [L, K] in ``dtype``."""
    (B, L), D, (R, K), strides = dy.shape, x.shape[1], indices.shape, dy.stride()
    dw = torch.empty(L, K, dtype=dtype, device=dy.device)
    xt, readable = feature_major(x), readable_labels(dy)
    arguments = (dy, *strides, readable, xt, xt.stride(0), indices, dw, B, L)
    dtypes = (dy.dtype, x.dtype, indices.dtype, dtype)
    key = (B, D, L, K, group_size, strides, readable, dtypes, fp32_precision(), dy.device)
    launch = BACKWARD_WEIGHT.plans.get(key)
    with on_device(dy):
        if launch is None:
            constants, itemsize = _constants(K, group_size, x.dtype, dy.dtype)
            constants["GAPS"] = readable > L
            del constants["SPLIT"]
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
