"""Top-k of labels in groups, in two passes over tiles of labels.

The k best labels of a row lie in the k tiles with the greatest maxima (equal ones: the first tiles), for each of those
holds a label that comes before all labels of the tiles behind it. So a sweep like the forward one keeps only the maximum of
every tile, ``torch.topk`` chooses k tiles a row, and the scores of their labels are computed again. No sorting network
stands in the sweep, and its batch tile is as wide as that of the forward pass. Sums of the two passes may round
differently: tiles whose maxima differ by less than that count as equal.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import QUANTIZED_DTYPE
from sparse_xmc.ops.triton_kernels import head_tiling, tuning
from sparse_xmc.ops.triton_kernels._dot import dot_terms, fp32_precision
from sparse_xmc.ops.triton_kernels._keys import LOWEST, pack
from sparse_xmc.ops.triton_kernels._launch import Launch, Plans, cdiv, power_of_2, ready
from sparse_xmc.ops.triton_kernels._layout import feature_major
from sparse_xmc.ops.triton_kernels._quantized import as_stored, decode

SMALLEST_GROUP = 8  # below it the maxima are too large a share of the logits
MAXIMA_BYTES = 64 << 20  # of the maxima, all together: more rows take several rounds


class _Layer(NamedTuple):
    weight: Tensor
    indices: Tensor
    bias: Tensor | None
    scale: Tensor | None
    group_size: int


@triton.jit
def _greater(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["B", "L"])
def tile_maxima_kernel(
    xt_ptr,  # [D, stride], zeros from column B on
    weight_ptr,  # [L, K]
    indices_ptr,  # [R, K]
    bias_ptr,  # [L] | None
    scale_ptr,  # [L] with 8-bit weights | None
    keys_ptr,  # [tiles, stride]: maximum above the complement of the tile
    stride,
    L,
    tiles,
    K: tl.constexpr,
    G: tl.constexpr,
    DOT: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    pid = tl.program_id(0)
    tile = pid % tiles
    offs_b = pid // tiles * BLOCK_B + tl.arange(0, BLOCK_B)
    PARTS: tl.constexpr = (G + BLOCK_L - 1) // BLOCK_L
    group = (tile // PARTS).to(tl.int64)
    first = group * G + tile % PARTS * BLOCK_L
    member = tl.arange(0, BLOCK_L)
    known = member < tl.minimum(L - first, G - tile % PARTS * BLOCK_L).to(tl.int32)
    score = tl.zeros((BLOCK_B, BLOCK_L), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        slot = offs_k < K
        weight_ptrs = weight_ptr + first * K + member[:, None] * K + offs_k[None, :]
        if EVEN:
            column = tl.load(indices_ptr + group * K + offs_k).to(tl.int64)  # [BLOCK_K]
            x = tl.load(xt_ptr + column[:, None] * stride + offs_b[None, :])  # [BLOCK_K, BLOCK_B]
            weight = tl.load(weight_ptrs, mask=known[:, None], other=0)  # [BLOCK_L, BLOCK_K]
        else:
            column = tl.load(indices_ptr + group * K + offs_k, mask=slot, other=0).to(tl.int64)  # [BLOCK_K]
            inside = slot[:, None] & (offs_b < stride)[None, :]
            # [BLOCK_K, BLOCK_B]
            x = tl.load(xt_ptr + column[:, None] * stride + offs_b[None, :], mask=inside, other=0.0)
            weight = tl.load(weight_ptrs, mask=known[:, None] & slot[None, :], other=0)  # [BLOCK_L, BLOCK_K]
        weight = decode(weight)
        if TERMS > 1:
            weight = weight.to(tl.float32)
        score = dot_terms(tl.trans(x), tl.trans(weight), score, DOT, TERMS, PRECISION)
    if scale_ptr is not None:
        score *= tl.load(scale_ptr + first + member, mask=known, other=0.0)[None, :]  # [BLOCK_L]
    if bias_ptr is not None:
        # [BLOCK_L]
        score += tl.load(bias_ptr + first + member, mask=known, other=float("-inf")).to(tl.float32)[None, :]
    else:
        score += tl.where(known, 0.0, float("-inf"))[None, :]
    best = tl.reduce(score, 1, _greater)  # [BLOCK_B]
    keys = pack(best, tl.zeros((BLOCK_B,), tl.int64) + tile)
    tl.store(keys_ptr + tile.to(tl.int64) * stride + offs_b, keys, mask=offs_b < stride)


@triton.jit(do_not_specialize=["L", "count"])
def rescore_kernel(
    x_ptr,  # [B, D]
    weight_ptr,  # [L, K]
    indices_ptr,  # [R, K]
    bias_ptr,  # [L] | None
    scale_ptr,  # [L] with 8-bit weights | None
    chosen_ptr,  # [count, B]: keys of tiles
    keys_ptr,  # [B, count, BLOCK_L]
    B,
    D,
    L,
    count,
    K: tl.constexpr,
    G: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row, place = (tl.program_id(0) // count).to(tl.int64), tl.program_id(0) % count
    PARTS: tl.constexpr = (G + BLOCK_L - 1) // BLOCK_L
    tile = 0xFFFFFFFF - (tl.load(chosen_ptr + place * B + row) & 0xFFFFFFFF)  # 0-dim
    group = tile // PARTS
    first = group * G + tile % PARTS * BLOCK_L
    member = tl.arange(0, BLOCK_L)
    known = member < tl.minimum(L - first, G - tile % PARTS * BLOCK_L).to(tl.int32)
    score = tl.zeros((BLOCK_L,), tl.float32)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        slot = offs_k < K
        column = tl.load(indices_ptr + group * K + offs_k, mask=slot, other=0).to(tl.int64)  # [BLOCK_K]
        x = tl.load(x_ptr + row * D + column, mask=slot, other=0.0).to(tl.float32)  # [BLOCK_K]
        weight_ptrs = weight_ptr + first * K + member[:, None] * K + offs_k[None, :]
        weight = decode(tl.load(weight_ptrs, mask=known[:, None] & slot[None, :], other=0))  # [BLOCK_L, BLOCK_K]
        score += tl.sum(weight.to(tl.float32) * x[None, :], 1)
    if scale_ptr is not None:
        score *= tl.load(scale_ptr + first + member, mask=known, other=0.0)  # [BLOCK_L]
    if bias_ptr is not None:
        score += tl.load(bias_ptr + first + member, mask=known, other=0.0).to(tl.float32)  # [BLOCK_L]
    keys = tl.where(known, pack(score, first + member), LOWEST)
    tl.store(keys_ptr + (row * count + place) * BLOCK_L + member, keys)


def _suits(config: tuning.Config, shape: tuning.Shape) -> bool:
    """Tiles between a quarter of the problem and all of it. float32 products without tensor cores keep their operands in
    registers, half as many rows where K takes more than four tiles; before sm_90 weights of many labels that are multiplied
    as several numbers take eight warps."""
    widest_b, widest_k = (128, 64) if shape.itemsize == 2 else (32 if shape.K <= 128 else 16, 32)
    if shape.terms > 1 and shape.G > 32 and not shape.room and config["num_warps"] == 4:
        return False
    widest_b, widest_k = min(widest_b, shape.B), min(widest_k, max(16, power_of_2(shape.K)))
    rows, slots = config["BLOCK_B"], config["BLOCK_K"]
    return widest_b <= 4 * rows <= 4 * widest_b and widest_k <= 4 * slots <= 4 * widest_k


TILE_MAXIMA = tuning.Tuned(
    tile_maxima_kernel,
    [
        {"BLOCK_B": rows, "BLOCK_K": slots, "num_warps": warps}
        for warps in (4, 8)
        for rows in (128, 64, 32, 16)
        for slots in (64, 32, 16)
    ],
    _suits,
)
_RESCORES = Plans()


def best_keys(
    x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None, scale: Tensor | None, k: int, group_size: int
) -> Tensor:
    """The k greatest keys (``_keys``) of every row: [B, k], descending."""
    layer = _Layer(as_stored(weight), indices, bias, scale, group_size)
    block_l = min(max(16, power_of_2(group_size)), 64)
    tiles = indices.shape[0] * cdiv(group_size, block_l)
    rows = max(16, MAXIMA_BYTES // (8 * tiles) // 16 * 16)
    if x.shape[0] <= rows:
        return _best_keys(x.contiguous(), layer, k, tiles, block_l)
    return torch.cat([_best_keys(part.contiguous(), layer, k, tiles, block_l) for part in x.split(rows)])


def _best_keys(x: Tensor, layer: _Layer, k: int, tiles: int, block_l: int) -> Tensor:
    (B, D), (L, K), G, device = x.shape, layer.weight.shape, layer.group_size, x.device
    if B == 0:
        return torch.empty(0, k, dtype=torch.int64, device=device)
    weight, indices, bias, scale, _ = layer
    stream = ready(x, weight, indices, bias, scale)
    kinds = (x.dtype, weight.dtype, indices.dtype, bias is not None and bias.dtype, scale is None)
    key = (B, D, L, K, G, kinds, fp32_precision(), device)
    xt = feature_major(x)
    stride = xt.shape[1]
    maxima = torch.empty(tiles, stride, dtype=torch.int64, device=device)
    arguments = (xt, weight, indices, bias, scale, maxima, stride, L, tiles)
    sweep = TILE_MAXIMA.plans.get(key)
    if sweep is None:
        sweep = _choose(key, layer, arguments, (B, D), block_l)
    sweep(stream, *arguments)
    count = min(k, tiles)
    chosen = maxima[:, :B].topk(count, dim=0).values.contiguous()
    keys = torch.empty(B, count * block_l, dtype=torch.int64, device=device)
    rescore = _RESCORES.get((count, *key))
    if rescore is None:
        widest = 64 if x.element_size() == 2 else 32
        blocks = {"BLOCK_L": block_l, "BLOCK_K": max(16, min(power_of_2(K), widest)), "num_warps": 2}
        rescore = _RESCORES.keep((count, *key), Launch(rescore_kernel, (B * count,), K=K, G=G, **blocks))
    rescore(stream, x, weight, indices, bias, scale, chosen, keys, B, D, L, count)
    return keys.topk(k, dim=1).values


def _choose(
    key: tuple[Any, ...], layer: _Layer, arguments: tuple[Any, ...], sizes: tuple[int, int], block_l: int
) -> Launch:
    """The launch that finds the maxima of tiles in calls like this one."""
    (B, D), (L, K), stride, tiles = sizes, layer.weight.shape, arguments[6], arguments[8]
    stored = layer.weight.dtype if layer.scale is None else QUANTIZED_DTYPE
    operand, terms, precision = head_tiling.operands(arguments[0].dtype, stored)
    shape = tuning.Shape.of(B, L, D, K, layer.group_size, operand.primitive_bitwidth // 8)
    shape = shape._replace(terms=terms, room=head_tiling.has_room(arguments[0].device))
    widest = tuning.suitable(TILE_MAXIMA.configs, _suits, shape)[0]
    constants = {
        "K": K, "G": layer.group_size, "DOT": operand, "TERMS": terms, "PRECISION": precision, "BLOCK_L": block_l,
        "EVEN": K % widest["BLOCK_K"] == 0 and stride % widest["BLOCK_B"] == 0,
    }  # fmt: skip
    return TILE_MAXIMA.choose(key, shape, lambda c: (tiles * cdiv(stride, c["BLOCK_B"]),), constants, arguments)
