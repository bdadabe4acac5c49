"""Top-k labels in one sweep over label tiles: memory ``O(B * k * splits)``, no ``[B, L]`` tensor.

A program walks over the label tiles of its split with the best keys (``_keys``) of its batch rows in registers. A tile is
merged only if it beats a row's worst key. The splits' keys are merged by ``torch.topk``. For k beyond ``MAX_KEEP`` the sweep
is repeated below the last key found. Labels in groups go another way (``topk_by_tiles``) unless some are excluded, and so do
float64 layers (``topk_float64``).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import QUANTIZED_DTYPE
from sparse_xmc.ops._backend import interpreting
from sparse_xmc.ops.triton_kernels import topk_by_tiles, topk_float64, tuning
from sparse_xmc.ops.triton_kernels._compile_case import CompileCase
from sparse_xmc.ops.triton_kernels._dot import dot_terms, fp32_precision
from sparse_xmc.ops.triton_kernels._keys import LOWEST, pack, unpack
from sparse_xmc.ops.triton_kernels._launch import Launch, Plans, cdiv, power_of_2, ready
from sparse_xmc.ops.triton_kernels._layout import feature_major
from sparse_xmc.ops.triton_kernels._quantized import as_stored, decode
from sparse_xmc.ops.triton_kernels.head_tiling import operands

MAX_KEEP = 128
MAX_SPLITS = 64
PROGRAMS = 512
BY_RANK = interpreting()
_PLANS = Plans()


@triton.jit
def _merge_by_rank(best, keys, KEEP: tl.constexpr):
    """``_merge`` by counting what is greater: few but large operations, as the interpreter likes them."""
    rank_best = tl.sum((best[:, None, :] > best[:, :, None]).to(tl.int32), 2)
    rank_best += tl.sum((keys[:, None, :] > best[:, :, None]).to(tl.int32), 2)
    rank_keys = tl.sum((best[:, None, :] > keys[:, :, None]).to(tl.int32), 2)
    rank_keys += tl.sum((keys[:, None, :] > keys[:, :, None]).to(tl.int32), 2)
    rank = KEEP - 1 - tl.arange(0, KEEP)[None, :, None]
    from_best = tl.max(tl.where(rank_best[:, None, :] == rank, best[:, None, :], LOWEST), 2)
    from_keys = tl.max(tl.where(rank_keys[:, None, :] == rank, keys[:, None, :], LOWEST), 2)
    return tl.maximum(from_best, from_keys)


@triton.jit
def _merge(best, keys, KEEP: tl.constexpr):
    """The KEEP greatest of ``best [N, KEEP]`` and ``keys [N, M]``; best and the result ascend along each row."""
    M: tl.constexpr = keys.shape[1]
    if M >= KEEP:
        top = tl.topk(keys, KEEP)
    else:
        first = tl.arange(0, KEEP // M)[None, :, None] == 0
        top = tl.where(first, tl.sort(keys, descending=True)[:, None, :], LOWEST)
        top = tl.reshape(top, (keys.shape[0], KEEP))
    # one list ascends and the other descends: the greater of each pair are the greatest of both
    return tl.sort(tl.maximum(best, top))


@triton.jit
def _scores_one_by_one(xt_ptr, weight_ptr, indices_ptr, label, known, offs_b, stride, K: tl.constexpr, G: tl.constexpr):
    """Scores ``[BLOCK_B, BLOCK_L]`` of any labels, each with its own gather."""
    scores = tl.zeros((label.shape[0], offs_b.shape[0]), tl.float32)
    mask = known[:, None] & (offs_b < stride)[None, :]
    for k in range(K):
        column = tl.load(indices_ptr + label // G * K + k, mask=known, other=0).to(tl.int64)  # [BLOCK_L]
        weight = decode(tl.load(weight_ptr + label * K + k, mask=known, other=0)).to(tl.float32)  # [BLOCK_L]
        x = tl.load(xt_ptr + column[:, None] * stride + offs_b[None, :], mask=mask, other=0.0)  # [BLOCK_L, BLOCK_B]
        scores += weight[:, None] * x.to(tl.float32)
    return tl.trans(scores)


@triton.jit
def _scores_of_group(
    xt_ptr,
    weight_ptr,
    indices_ptr,
    group,
    label,
    known,
    offs_b,
    stride,
    K: tl.constexpr,
    DOT: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Scores ``[BLOCK_B, BLOCK_L]`` of labels of one group: one gather for all of them."""
    scores = tl.zeros((offs_b.shape[0], label.shape[0]), tl.float32)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K)
        slot = offs_k < K
        column = tl.load(indices_ptr + group * K + offs_k, mask=slot, other=0).to(tl.int64)  # [BLOCK_K]
        mask = slot[:, None] & (offs_b < stride)[None, :]
        x = tl.load(xt_ptr + column[:, None] * stride + offs_b[None, :], mask=mask, other=0.0)  # [BLOCK_K, BLOCK_B]
        connected = known[:, None] & slot[None, :]
        # [BLOCK_L, BLOCK_K]
        weight = decode(tl.load(weight_ptr + label[:, None] * K + offs_k[None, :], mask=connected, other=0))
        scores = dot_terms(tl.trans(x), tl.trans(weight.to(tl.float32)), scores, DOT, TERMS, PRECISION)
    return scores


@triton.jit(do_not_specialize=["B", "L", "num_tiles", "tiles_per_split", "splits"])
def _topk(
    xt_ptr,  # [D, stride], zeros from column B on
    weight_ptr,  # [L, K]
    indices_ptr,  # [ceil(L / G), K]
    bias_ptr,  # [L] | None
    scale_ptr,  # [L] with 8-bit weights | None
    crow_ptr,  # [B + 1] | None: excluded labels of each row
    col_ptr,
    ceiling_ptr,  # [B] | None: only keys below it count
    keys_ptr,  # [B, splits, KEEP]
    B,
    stride: tl.int64,
    L,
    num_tiles,
    tiles_per_split,
    splits,
    K: tl.constexpr,
    G: tl.constexpr,
    DOT: tl.constexpr,
    TERMS: tl.constexpr,
    PRECISION: tl.constexpr,
    KEEP: tl.constexpr,
    BY_RANK: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    split = (tl.program_id(0) % splits).to(tl.int64)
    offs_b = tl.program_id(0) // splits * BLOCK_B + tl.arange(0, BLOCK_B)
    row = offs_b < B
    PARTS: tl.constexpr = (G + BLOCK_L - 1) // BLOCK_L
    best = tl.full((BLOCK_B, KEEP), LOWEST, tl.int64)
    ceiling = tl.full((BLOCK_B,), 0x7FFFFFFFFFFFFFFF, tl.int64)
    if ceiling_ptr is not None:
        ceiling = tl.load(ceiling_ptr + offs_b, mask=row, other=0)  # [BLOCK_B]
    last = tl.minimum((split + 1) * tiles_per_split, num_tiles)
    for tile in range(split * tiles_per_split, last):
        if DOT is None:
            label = tile * BLOCK_L + tl.arange(0, BLOCK_L)
            known = label < L
            score = _scores_one_by_one(xt_ptr, weight_ptr, indices_ptr, label, known, offs_b, stride, K, G)
        else:
            group = tile // PARTS
            member = tile % PARTS * BLOCK_L + tl.arange(0, BLOCK_L)
            label = group * G + member
            known = (member < G) & (label < L)
            score = _scores_of_group(
                xt_ptr, weight_ptr, indices_ptr, group, label, known, offs_b, stride, K, DOT, TERMS, PRECISION, BLOCK_K
            )
        if scale_ptr is not None:
            score *= tl.load(scale_ptr + label, mask=known, other=0.0)[None, :]  # [BLOCK_L]
        if bias_ptr is not None:
            score += tl.load(bias_ptr + label, mask=known, other=0.0).to(tl.float32)[None, :]  # [BLOCK_L]
        keys = tl.where(known[None, :] & row[:, None], pack(score, label[None, :]), LOWEST)
        worst = tl.min(best, 1)
        keys = tl.where(keys < ceiling[:, None], keys, LOWEST)
        better = tl.max((keys > worst[:, None]).to(tl.int32))
        while better > 0:  # once at most: as an "if" Triton 3.7 mixes up the layouts of best for gfx942
            if crow_ptr is not None:
                position = tl.load(crow_ptr + offs_b, mask=row, other=0)  # [BLOCK_B]
                end = tl.load(crow_ptr + offs_b + 1, mask=row, other=0)  # [BLOCK_B]
                while tl.max((position < end).to(tl.int32)) > 0:
                    excluded = tl.load(col_ptr + position, mask=position < end, other=-1).to(tl.int64)  # [BLOCK_B]
                    keys = tl.where(excluded[:, None] == label[None, :], LOWEST, keys)
                    position += 1
            if BY_RANK:
                best = _merge_by_rank(best, keys, KEEP)
            else:
                best = _merge(best, keys, KEEP)
            better = better * 0
    out = (offs_b.to(tl.int64) * splits + split)[:, None] * KEEP + tl.arange(0, KEEP)[None, :]
    tl.store(keys_ptr + out, best, mask=row[:, None])


def topk(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    k: int,
    group_size: int,
    exclude_offsets: Tensor | None,
    exclude_labels: Tensor | None,
    weight_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best labels of each row: (scores [B, k] in x's dtype, labels [B, k] int64), best first.

    Scores are compared in float32 (float64 for float64 layers); ties go to the smaller label; nan is the greatest.
    Excluded labels (CSR, columns in any order) are passed over; at least k must remain.
    """
    if x.dtype == torch.float64:
        return topk_float64.topk(x, weight, indices, bias, k, group_size, exclude_offsets, exclude_labels)
    weight, indices = weight.contiguous(), indices.contiguous()
    bias, weight_scale = (None if t is None else t.contiguous() for t in (bias, weight_scale))
    layer = (weight, indices, bias, weight_scale)
    if group_size >= topk_by_tiles.SMALLEST_GROUP and k <= MAX_KEEP and exclude_offsets is None:
        return unpack(topk_by_tiles.best_keys(x, *layer, k, group_size), x.dtype)
    xt = feature_major(x)
    found: list[Tensor] = []
    ceiling = None
    while k > 0:
        keys = _best_keys(x, xt, *layer, min(k, MAX_KEEP), group_size, exclude_offsets, exclude_labels, ceiling)
        found.append(keys)
        k -= keys.shape[1]
        ceiling = keys[:, -1].contiguous() if k else None
    return unpack(found[0] if len(found) == 1 else torch.cat(found, dim=1), x.dtype)


class _Sweep(NamedTuple):
    """A launch of ``_topk`` for calls of one kind, and what its grid follows from."""

    launch: Launch
    splits: int
    tiles: int
    keep: int


def _candidates(B: int, keep: int, group_size: int) -> list[tuning.Config]:
    """Tiles of labels and rows, the first guess first."""
    rows = max(16, power_of_2(B))
    if group_size > 1:
        labels = min(max(16, power_of_2(group_size)), 64)
        tried = [(labels, 16, 4), (labels, 32, 4), (labels, 16, 8), (labels, 16, 2), (labels, 32, 8)]
    else:
        own = max(8, min(power_of_2(max(B, 1)), 1024 // keep, 32))
        tried = [(64, own, 4), (128, own, 4), (32, own, 4), (64, 2 * own, 4), (64, own, 2), (64, own, 8)]
    return [{"BLOCK_L": a, "BLOCK_B": b, "num_warps": w} for a, b, w in tried if b <= rows]


def _sweep(
    x: Tensor, weight: Tensor, group_size: int, k: int, config: tuning.Config, constants: dict[str, Any]
) -> _Sweep:
    B, L = x.shape[0], weight.shape[0]
    block_l = config["BLOCK_L"]
    tiles = cdiv(L, group_size) * cdiv(group_size, block_l) if group_size > 1 else cdiv(L, block_l)
    batch_tiles = cdiv(B, config["BLOCK_B"])
    splits = 1 if interpreting() else max(1, min(PROGRAMS // max(batch_tiles, 1), tiles, MAX_SPLITS))
    return _Sweep(Launch(_topk, (batch_tiles * splits,), **constants, **config), splits, tiles, constants["KEEP"])


def _best_keys(
    x: Tensor,
    xt: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    weight_scale: Tensor | None,
    k: int,
    group_size: int,
    exclude_crow: Tensor | None,
    exclude_col: Tensor | None,
    ceiling: Tensor | None,
) -> Tensor:
    """The k greatest keys below the ceiling, [B, k] in descending order."""
    B, (L, K), weight_dtype, weight = x.shape[0], weight.shape, weight.dtype, as_stored(weight)
    tensors = (xt, weight, indices, bias, weight_scale, exclude_crow, exclude_col, ceiling)

    def start(sweep: _Sweep, stream: int | None) -> Tensor:
        keys = torch.empty(B, sweep.splits * sweep.keep, dtype=torch.int64, device=x.device)
        if B:
            per_split = cdiv(sweep.tiles, sweep.splits)
            sweep.launch(stream, *tensors, keys, B, xt.shape[1], L, sweep.tiles, per_split, sweep.splits)
        return keys

    dtypes = (x.dtype, weight.dtype, indices.dtype, bias is not None and bias.dtype, weight_scale is None)
    lists = (exclude_crow is not None and exclude_crow.dtype, exclude_col is not None and exclude_col.dtype)
    key = (x.shape, weight.shape, k, group_size, dtypes, lists, ceiling is None, fp32_precision(), x.device)
    sweep = _PLANS.get(key)
    if sweep is None:
        keep = max(8, power_of_2(k))
        dot, terms, precision = operands(x.dtype, weight_dtype) if group_size > 1 else (None, 1, None)
        constants = {"K": K, "G": group_size, "DOT": dot, "TERMS": terms, "PRECISION": precision, "KEEP": keep}
        constants |= {"BY_RANK": BY_RANK, "BLOCK_K": max(16, min(power_of_2(K), 64))}
        shape = tuning.Shape.of(B, L, x.shape[1], K, group_size, weight.element_size(), x.element_size())

        def attempt(config: tuning.Config) -> Callable[[], Tensor]:
            tried = _sweep(x, weight, group_size, k, config, constants)
            return lambda: start(tried, None)

        config, settled = tuning.fastest(
            x.device,
            lambda: tuning.key_of(_topk, shape, {**constants, "kinds": (dtypes, lists)}),
            _candidates(B, keep, group_size),
            attempt,
        )
        sweep = _sweep(x, weight, group_size, k, config, constants)
        if settled:
            _PLANS.keep(key, sweep)
    keys = start(sweep, ready(weight, indices, bias, weight_scale, exclude_crow, exclude_col, ceiling))
    return keys.topk(k, dim=1).values


def compile_cases() -> Iterator[CompileCase]:
    """Both families, with and without excluded labels, few and many kept keys; 8-bit weights."""
    for dtype, weight_dtype, K, G, k, exclude in (
        (torch.bfloat16, torch.bfloat16, 32, 1, 5, False),
        (torch.float32, torch.float32, 32, 1, 100, True),
        (torch.bfloat16, torch.bfloat16, 64, 32, 5, False),
        (torch.float32, torch.float32, 64, 32, 10, False),
        (torch.bfloat16, torch.bfloat16, 64, 32, 100, True),
        (torch.bfloat16, QUANTIZED_DTYPE, 32, 1, 5, False),
        (torch.bfloat16, QUANTIZED_DTYPE, 64, 32, 10, False),
    ):
        sizes = ((128, 768), (20_011, K), (-(-20_011 // G), K), (20_011,))
        dtypes = (dtype, weight_dtype, torch.uint16, dtype)
        layer = [torch.empty(*size, dtype=d, device="meta") for size, d in zip(sizes, dtypes, strict=True)]
        csr = [torch.empty(n, dtype=torch.int64, device="meta") if exclude else None for n in (129, 640)]
        scale = torch.empty(20_011, device="meta") if weight_dtype == QUANTIZED_DTYPE else None
        kind = str(dtype).removeprefix("torch.") + ",8-bit weights" * (scale is not None)
        name = f"[{kind},K={K},G={G},k={k}{',exclude' * exclude}]"
        arguments: Any = (*layer, k, G, *csr, scale)
        yield CompileCase(name, functools.partial(topk, *arguments), wgmma=not exclude and G > 1)
