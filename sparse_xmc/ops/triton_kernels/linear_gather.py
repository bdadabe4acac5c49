"""Fixed fan-in linear layer where every label has its own connections (G = 1): gather and multiply-add, no ``tl.dot``.

``x`` comes feature-major ``[D, padded(B)]``: a connection reads one contiguous row. A program owns a tile of labels and
a tile of the batch; programs that share a batch tile are neighbours, so that the slab ``[D, BLOCK_B]`` stays in cache.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops.triton_kernels import tuning
from sparse_xmc.ops.triton_kernels._dot import accumulator
from sparse_xmc.ops.triton_kernels._launch import cdiv, padded, power_of_2, ready
from sparse_xmc.ops.triton_kernels._layout import batch_major, empty_logits, feature_major
from sparse_xmc.ops.triton_kernels._quantized import as_stored, decode
from sparse_xmc.ops.triton_kernels._rounding import round_nearest

SLAB_BYTES = 128 << 10


def _configs(tiles: list[tuple[int, int, int, int]]) -> list[tuning.Config]:
    return [
        {"BLOCK_L": block_l, "BLOCK_B": block_b, "UNROLL": unroll, "num_warps": warps, "num_stages": 1}
        for block_l, block_b, unroll, warps in tiles
    ]


def _suits(config: tuning.Config, shape: tuning.Shape) -> bool:
    """The batch tile is between a quarter of the batch and all of it; the label tile keeps the sums in registers."""
    widest = min(shape.B, 256)
    tile = config["BLOCK_L"] * config["BLOCK_B"]
    return widest <= 4 * config["BLOCK_B"] <= 4 * widest and tile <= (1024 if shape.itemsize == 8 else 4096)


def _suits_slab(config: tuning.Config, shape: tuning.Shape) -> bool:
    """Also, where a narrower tile is allowed: the slab of x that neighbouring programs gather from fits the L1 cache."""
    narrowest = 4 * config["BLOCK_B"] <= max(64, min(shape.B, 256))
    fits = shape.D * config["BLOCK_B"] * shape.x_bytes <= SLAB_BYTES
    return _suits(config, shape) and (narrowest or fits)


_FORWARD = _configs(
    [
        (32, 128, 4, 4),
        (16, 256, 4, 4),
        (32, 64, 4, 4),
        (64, 64, 4, 4),
        (16, 128, 4, 4),
        (32, 128, 8, 4),
        (32, 128, 4, 8),
        (16, 256, 8, 4),
        (64, 32, 4, 4),
        (32, 32, 4, 4),
        (64, 16, 4, 4),
        (16, 64, 4, 4),
    ]
)
_BACKWARD_INPUT = _configs(
    [
        (32, 128, 1, 4),
        (16, 256, 1, 4),
        (32, 64, 1, 4),
        (16, 128, 1, 4),
        (64, 32, 1, 4),
        (32, 32, 1, 4),
        (64, 16, 1, 4),
        (16, 64, 1, 4),
    ]
)
_BACKWARD_WEIGHT = _configs(
    [
        (16, 128, 2, 4),
        (16, 256, 2, 4),
        (32, 64, 2, 4),
        (32, 128, 2, 4),
        (64, 32, 2, 4),
        (32, 32, 2, 4),
        (64, 16, 2, 4),
        (16, 64, 2, 4),
    ]
)


@triton.jit(do_not_specialize=["B"])
def forward_kernel(
    xt_ptr,  # [D, stride_x], zeros from column B on
    stride_x,
    weight_ptr,  # [L, K]
    indices_ptr,  # [L, K]
    bias_ptr,  # [L] or None
    scale_ptr,  # [L] with 8-bit weights, else None
    y_ptr,  # [B, stride_y]; what is written from column L on does not count
    stride_y,
    B,
    L,
    K: tl.constexpr,
    G: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_B: tl.constexpr,
    UNROLL: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(L, BLOCK_L)
    offs_l = (pid % tiles).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    offs_b = (pid // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_l = offs_l < L
    mask_x = (offs_b < stride_x)[None, :]

    acc = tl.zeros((BLOCK_L, BLOCK_B), ACC)
    for k in tl.range(0, K, loop_unroll_factor=UNROLL):
        rows = tl.load(indices_ptr + offs_l * K + k, mask=mask_l, other=0).to(tl.int64)  # [BLOCK_L]
        weight = decode(tl.load(weight_ptr + offs_l * K + k, mask=mask_l, other=0)).to(ACC)  # [BLOCK_L]
        # [BLOCK_L, BLOCK_B]
        x = tl.load(xt_ptr + rows[:, None] * stride_x + offs_b[None, :], mask=mask_x, other=0.0).to(ACC)
        acc += weight[:, None] * x
    if scale_ptr is not None:
        acc *= tl.load(scale_ptr + offs_l, mask=mask_l, other=0.0)[:, None]  # [BLOCK_L]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_l, mask=mask_l, other=0.0).to(ACC)[:, None]  # [BLOCK_L]

    y_ptrs = y_ptr + offs_b[None, :] * stride_y + offs_l[:, None]
    inside = (offs_l < stride_y)[:, None] & (offs_b < B)[None, :]
    tl.store(y_ptrs, round_nearest(acc, y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["B"])
def backward_input_kernel(
    dy_ptr,  # [B, L]
    stride_db,
    stride_dl,
    weight_ptr,  # [L, K]
    indices_ptr,  # [L, K]
    dxt_ptr,  # [D, stride_x] in ACC, zeros; added to
    stride_x,
    B,
    L,
    K: tl.constexpr,
    G: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_B: tl.constexpr,
    UNROLL: tl.constexpr,
):
    pid = tl.program_id(0)
    tiles = tl.cdiv(L, BLOCK_L)
    offs_l = (pid % tiles).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    offs_b = (pid // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_l = offs_l < L
    mask_x = mask_l[:, None] & (offs_b < stride_x)[None, :]

    dy_ptrs = dy_ptr + offs_b[None, :] * stride_db + offs_l[:, None] * stride_dl
    dy = tl.load(dy_ptrs, mask=mask_l[:, None] & (offs_b < B)[None, :], other=0.0).to(ACC)  # [BLOCK_L, BLOCK_B]
    for k in tl.range(0, K, loop_unroll_factor=UNROLL):
        rows = tl.load(indices_ptr + offs_l * K + k, mask=mask_l, other=0).to(tl.int64)  # [BLOCK_L]
        weight = tl.load(weight_ptr + offs_l * K + k, mask=mask_l, other=0.0).to(ACC)  # [BLOCK_L]
        dx_ptrs = dxt_ptr + rows[:, None] * stride_x + offs_b[None, :]
        tl.atomic_add(dx_ptrs, weight[:, None] * dy, mask=mask_x, sem="relaxed")


@triton.jit(do_not_specialize=["B"])
def backward_weight_kernel(
    dy_ptr,  # [B, L]
    stride_db,
    stride_dl,
    xt_ptr,  # [D, stride_x], zeros from column B on
    stride_x,
    indices_ptr,  # [L, K]
    dw_ptr,  # [L, K]
    B,
    L,
    K: tl.constexpr,
    G: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_B: tl.constexpr,
    UNROLL: tl.constexpr,
):
    pid = tl.program_id(0)
    chunks: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    offs_l = (pid // chunks).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    offs_k = tl.arange(0, BLOCK_K)
    start_k = (pid % chunks) * BLOCK_K
    mask_l = offs_l < L

    acc = tl.zeros((BLOCK_L, BLOCK_K), ACC)
    for start_b in range(0, B, BLOCK_B):
        offs_b = (start_b + tl.arange(0, BLOCK_B)).to(tl.int64)
        dy_ptrs = dy_ptr + offs_b[None, :] * stride_db + offs_l[:, None] * stride_dl
        dy = tl.load(dy_ptrs, mask=mask_l[:, None] & (offs_b < B)[None, :], other=0.0).to(ACC)  # [BLOCK_L, BLOCK_B]
        mask_x = (offs_b < stride_x)[None, :]
        for k in tl.range(0, BLOCK_K, loop_unroll_factor=UNROLL):
            column = tl.minimum(start_k + k, K - 1)
            rows = tl.load(indices_ptr + offs_l * K + column, mask=mask_l, other=0).to(tl.int64)  # [BLOCK_L]
            # [BLOCK_L, BLOCK_B]
            x = tl.load(xt_ptr + rows[:, None] * stride_x + offs_b[None, :], mask=mask_x, other=0.0).to(ACC)
            acc += tl.where(offs_k[None, :] == k, tl.sum(dy * x, axis=1)[:, None], 0.0)

    dw_ptrs = dw_ptr + offs_l[:, None] * K + start_k + offs_k[None, :]
    tl.store(
        dw_ptrs, round_nearest(acc, dw_ptr.dtype.element_ty), mask=mask_l[:, None] & (start_k + offs_k < K)[None, :]
    )


FORWARD = tuning.Tuned(forward_kernel, _FORWARD, _suits_slab)
BACKWARD_INPUT = tuning.Tuned(backward_input_kernel, _BACKWARD_INPUT, _suits)
BACKWARD_WEIGHT = tuning.Tuned(backward_weight_kernel, _BACKWARD_WEIGHT, _suits_slab)


def _tiles(L: int, B: int) -> Callable[[tuning.Config], tuple[int, ...]]:
    return lambda config: (cdiv(L, config["BLOCK_L"]) * cdiv(B, config["BLOCK_B"]),)


def forward(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None = None,
    xt: Tensor | None = None,
) -> Tensor:
    """x [B, D] -> y [B, L] in x's dtype. xt: x feature-major, where it is there already."""
    (B, D), (L, K) = x.shape, weight.shape
    y = empty_logits(x, L)
    if B == 0:
        return y
    xt, weight = feature_major(x) if xt is None else xt, as_stored(weight)
    arguments = (xt, xt.stride(0), weight, indices, bias, weight_scale, y, y.stride(0), B, L)
    dtypes = (x.dtype, weight.dtype, indices.dtype, bias is not None and bias.dtype, weight_scale is None)
    key = (B, D, L, K, dtypes, x.device)
    launch = FORWARD.plans.get(key)
    if launch is None:
        constants = {"K": K, "G": 1, "ACC": accumulator(x.dtype)}
        shape = tuning.Shape.of(B, L, D, K, 1, compute_dtype(x.dtype).itemsize, x.element_size())
        launch = FORWARD.choose(key, shape, _tiles(L, B), constants, arguments)
    launch(ready(weight, indices, bias, weight_scale), *arguments)
    return y


def backward_input(dy: Tensor, weight: Tensor, indices: Tensor, in_features: int) -> Tensor:
    """dy [B, L] -> dx [B, D] in dy's dtype: one atomic row per connection, in no fixed order."""
    (B, L), K = dy.shape, weight.shape[1]
    dxt = torch.zeros(in_features, padded(B), dtype=compute_dtype(dy.dtype), device=dy.device)
    if B:
        strides = dy.stride()
        arguments = (dy, *strides, weight, indices, dxt, dxt.stride(0), B, L)
        key = (B, in_features, L, K, strides, dy.dtype, weight.dtype, indices.dtype, dy.device)
        launch = BACKWARD_INPUT.plans.get(key)
        if launch is None:
            constants = {"K": K, "G": 1, "ACC": accumulator(dy.dtype)}
            shape = tuning.Shape.of(B, L, in_features, K, 1, dxt.element_size())
            launch = BACKWARD_INPUT.choose(key, shape, _tiles(L, B), constants, arguments, scratch=dxt)
        launch(ready(dy, weight, indices), *arguments)
    return batch_major(dxt, B, dy.dtype)


def backward_weight(dy: Tensor, x: Tensor, indices: Tensor, dtype: torch.dtype, xt: Tensor | None = None) -> Tensor:
    """dy [B, L], x [B, D] -> dw [L, K] in ``dtype``. xt: as in ``forward``."""
    (B, L), D, K = dy.shape, x.shape[1], indices.shape[1]
    dw = torch.empty(L, K, dtype=dtype, device=dy.device)
    xt, strides = feature_major(x) if xt is None else xt, dy.stride()
    arguments = (dy, *strides, xt, xt.stride(0), indices, dw, B, L)
    key = (B, D, L, K, strides, dy.dtype, x.dtype, indices.dtype, dtype, dy.device)
    launch = BACKWARD_WEIGHT.plans.get(key)
    if launch is None:
        block_k = min(power_of_2(K), 32)
        constants = {"K": K, "G": 1, "ACC": accumulator(x.dtype), "BLOCK_K": block_k}
        shape = tuning.Shape.of(B, L, D, K, 1, compute_dtype(x.dtype).itemsize, x.element_size())

        def grid(config: tuning.Config) -> tuple[int, ...]:
            return (cdiv(L, config["BLOCK_L"]) * cdiv(K, block_k),)

        launch = BACKWARD_WEIGHT.choose(key, shape, grid, constants, arguments)
    launch(ready(dy, indices), *arguments)
    return dw
