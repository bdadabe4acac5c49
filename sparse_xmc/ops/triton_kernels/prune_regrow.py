"""Triton kernels of ``prune_regrow_``: a block of rows is scored, pruned and regrown in registers."""

import struct
from collections.abc import Callable, Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._contract import Rewiring
from sparse_xmc.ops.triton_kernels import tuning
from sparse_xmc.ops.triton_kernels._compile_case import CompileCase
from sparse_xmc.ops.triton_kernels._launch import Plans, cdiv, power_of_2
from sparse_xmc.ops.triton_kernels._magnitude import HIGHEST, lowest_per_row, row_keys, tile_shape
from sparse_xmc.ops.triton_kernels._rounding import round_nearest
from sparse_xmc.ops.triton_kernels._sampling import draw_distinct, free_feature

SEARCHED_ROWS = 1 << 16  # of the copies that a search works on
_CONFIGS = Plans()
_REGROW, _CANDIDATES, _WEIGHTS = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)  # streams of random numbers


@triton.jit
def _pruned_slots(weight_ptr, counts_ptr, threshold_key, fixed, rows, k, R, L, K, D, group_size, USE_MAX: tl.constexpr):
    """The slots that rewiring prunes, bool ``[ROWS, BLOCK_K]``, and their number: the lowest keys, the first of equal ones."""
    keys = row_keys(weight_ptr, rows, k, L, K, group_size, USE_MAX)
    if counts_ptr is not None:
        need = tl.load(counts_ptr + rows, mask=rows < R, other=0).to(tl.int32)  # [ROWS]
    else:
        # no branch on ``fixed``: Triton 3.7 fails on an ``if`` that yields such tensors
        below = (keys < threshold_key) & (rows < R)[:, None] & (k < K)[None, :]
        counted = tl.minimum(tl.sum(below.to(tl.int32), 1), D - K)
        need = tl.where(fixed >= 0, tl.where(rows < R, fixed, 0).to(tl.int32), counted)
    lowest = tl.zeros([rows.shape[0]], tl.int32)
    for step in range(0, 31):
        trial = lowest | (1 << (30 - step))
        lowest = tl.where(tl.sum((keys < trial[:, None]).to(tl.int32), 1) < need, trial, lowest)
    below = keys < lowest[:, None]
    equal = (keys == lowest[:, None]).to(tl.int32)
    ties = need - tl.sum(below.to(tl.int32), 1)
    return (need > 0)[:, None] & (below | ((equal > 0) & (tl.cumsum(equal, 1) - equal < ties[:, None]))), need


@triton.jit
def _reset(state_ptr, offsets, known, pruned, K, TO_MEAN: tl.constexpr):
    """Zeros, or the label's mean, at the pruned slots of a tile of labels."""
    value = tl.zeros([offsets.shape[0], offsets.shape[1]], tl.float32)
    if TO_MEAN:
        held = tl.load(state_ptr + offsets, mask=known, other=0.0).to(tl.float32)  # [ROWS, BLOCK_K]
        value += (tl.sum(held, 1) / K)[:, None]
        tl.debug_barrier()  # another thread may have yet to load what this one stores
    tl.store(state_ptr + offsets, round_nearest(value, state_ptr.dtype.element_ty), mask=pruned & known)


@triton.jit(do_not_specialize=["seed", "first_row", "fixed", "threshold_key"])
def rewire_kernel(
    states,  # tuple of [L, K] that become zero where a connection changes
    mean_states,  # tuple of [L, K] that become the label's mean there
    weight_ptr,  # [L, K]
    indices_ptr,  # [R, K]
    counts_ptr,  # [R] int16 or None
    candidates_ptr,  # [R, C] int32 or None
    total_ptr,  # int64
    threshold_key,
    fixed,
    seed,
    first_row,
    bound,
    R,
    L,
    K,
    D,
    C,
    group_size,
    USE_MAX: tl.constexpr,
    UNIFORM: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK_K)
    inside = (rows < R)[:, None] & (k < K)[None, :]
    pruned, need = _pruned_slots(weight_ptr, counts_ptr, threshold_key, fixed, rows, k, R, L, K, D, group_size, USE_MAX)
    tl.atomic_add(total_ptr, tl.sum(need, 0).to(tl.int64), sem="relaxed")
    place = tl.cumsum(pruned.to(tl.int32), 1) - 1
    slots = rows[:, None] * K + k[None, :]
    if candidates_ptr is not None:
        fresh = tl.load(candidates_ptr + rows[:, None] * C + place, mask=pruned, other=0)  # [ROWS, BLOCK_K]
    else:
        held = tl.load(indices_ptr + slots, mask=inside, other=0).to(tl.int32)  # [ROWS, BLOCK_K]
        held = tl.where(inside, held, HIGHEST)
        chosen = tl.full([ROWS, BLOCK_K], -1, tl.int32)
        fresh = tl.zeros([ROWS, BLOCK_K], tl.int32)
        counter = (first_row + rows).to(tl.uint32)
        zero = counter * 0
        for i0 in range(0, tl.max(need, 0), 4):
            words = tl.philox(seed, counter, zero + i0 // 4, zero, zero + _REGROW)
            for j in tl.static_range(4):
                rank = draw_distinct(words[j], i0 + j, need, D - K + need * 0, chosen)
                live = i0 + j < need
                rank = tl.where(live, rank, 0)
                chosen = tl.where((k[None, :] == i0 + j) & live[:, None], rank[:, None], chosen)
                feature = free_feature(held, rank, D, K)
                fresh = tl.where(pruned & (place == i0 + j), feature[:, None], fresh)
    tl.debug_barrier()  # in a small tile several warps hold the same rows, and one of them stores what another may yet load
    tl.store(indices_ptr + slots, fresh.to(indices_ptr.dtype.element_ty), mask=pruned)
    for g in range(0, group_size):
        label = rows * group_size + g
        mask = pruned & (label < L)[:, None]
        offsets = label[:, None] * K + k[None, :]
        known = (label < L)[:, None] & (k < K)[None, :]
        for i in tl.static_range(len(states)):
            _reset(states[i], offsets, known, mask, K, False)
        for i in tl.static_range(len(mean_states)):
            _reset(mean_states[i], offsets, known, mask, K, True)
        value = tl.zeros([ROWS, BLOCK_K], tl.float32)
        if UNIFORM:
            # names of their own: the compiler carries a name through the loop with the type it had before
            zeros = tl.zeros([ROWS, BLOCK_K], tl.uint32)
            labels = zeros + (first_row * group_size + label).to(tl.uint32)[:, None]
            bits = tl.philox(seed, labels, zeros + (k >> 2).to(tl.uint32)[None, :], zeros, zeros + _WEIGHTS)
            lane = zeros.to(tl.int32) + (k & 3)[None, :]
            word = tl.where(lane < 2, tl.where(lane == 0, bits[0], bits[1]), tl.where(lane == 2, bits[2], bits[3]))
            value = ((word >> 8).to(tl.float32) * 1.1920928955078125e-07 - 1.0) * bound
        stored = round_nearest(value, weight_ptr.dtype.element_ty)
        tl.store(weight_ptr + offsets, stored, mask=mask)


def rewire_(
    weight: Tensor, indices: Tensor, state: Sequence[Tensor], mean_state: Sequence[Tensor], plan: Rewiring
) -> Tensor:
    """Prunes and regrows in place; the number of changed slots of ``indices``."""
    R, K = indices.shape
    total = torch.zeros((), dtype=torch.int64, device=weight.device)
    dtypes = (weight.dtype, indices.dtype, *(t.dtype for t in state), None, *(t.dtype for t in mean_state))
    listed = (plan.counts is None, plan.candidates is not None and plan.candidates.dtype)
    key = (R, K, plan.in_features, plan.group_size, plan.use_max, plan.bound > 0, dtypes, listed, weight.device)
    config = _CONFIGS.get(key)
    if config is None:
        config = _choose(key, weight, indices, state, mean_state, plan)
    _rewire_(weight, indices, state, mean_state, plan, total, config)
    return total


def _rewire_(
    weight: Tensor,
    indices: Tensor,
    state: Sequence[Tensor],
    mean_state: Sequence[Tensor],
    plan: Rewiring,
    total: Tensor,
    config: tuning.Config,
) -> None:
    (R, K), L = indices.shape, weight.shape[0]
    threshold = struct.unpack("<i", struct.pack("<f", plan.threshold))[0]
    listed = 0 if plan.candidates is None else plan.candidates.shape[1]
    rewire_kernel[(cdiv(R, config["ROWS"]),)](
        tuple(state), tuple(mean_state), weight, indices, plan.counts, plan.candidates, total, threshold, plan.fixed,
        plan.seed, plan.first_row, plan.bound, R, L, K, plan.in_features, listed, plan.group_size,
        USE_MAX=plan.use_max, UNIFORM=plan.bound > 0, BLOCK_K=power_of_2(K), **config,
    )  # fmt: skip


def _choose(
    key: tuple[object, ...],
    weight: Tensor,
    indices: Tensor,
    state: Sequence[Tensor],
    mean_state: Sequence[Tensor],
    plan: Rewiring,
) -> tuning.Config:
    """The configuration for calls like this one, searched on copies of the first rows."""
    (R, K), G = indices.shape, plan.group_size
    rows, _ = tile_shape(K)
    tried = ((rows, 4), (rows, 8), (rows, 2), (rows // 2, 4), (rows // 2, 2), (rows * 2, 8))
    candidates: list[tuning.Config] = [{"ROWS": n, "num_warps": warps} for n, warps in tried if n]

    def attempt(config: tuning.Config) -> Callable[[], None]:
        number = min(R, SEARCHED_ROWS)
        own, *copies = (t[: number * G].clone() for t in (weight, *state, *mean_state))
        places, total = indices[:number].clone(), torch.zeros((), dtype=torch.int64, device=weight.device)
        return lambda: _rewire_(own, places, copies[: len(state)], copies[len(state) :], plan, total, config)

    shape = tuning.Shape.of(16, weight.shape[0], plan.in_features, K, G, weight.element_size())
    kinds = {"kinds": str(key[4:-1]).replace("torch.", "")}
    config, settled = tuning.fastest(
        weight.device, lambda: tuning.key_of(rewire_kernel, shape, kinds), candidates, attempt
    )
    return _CONFIGS.keep(key, config) if settled else config


@triton.jit(do_not_specialize=["seed", "first_row"])
def candidates_kernel(
    indices_ptr,  # [R, K]
    out_ptr,  # [R, C]
    seed,
    first_row,
    R,
    K,
    C,
    D,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k, c = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_C)
    inside = (rows < R)[:, None] & (k < K)[None, :]
    held = tl.load(indices_ptr + rows[:, None] * K + k[None, :], mask=inside, other=0).to(tl.int32)  # [ROWS, BLOCK_K]
    held = tl.where(inside, held, HIGHEST)
    chosen = tl.full([ROWS, BLOCK_C], -1, tl.int32)
    counter = (first_row + rows).to(tl.uint32)
    zero = counter * 0
    size = tl.zeros([ROWS], tl.int32) + (D - K)
    for i0 in range(0, C, 4):
        words = tl.philox(seed, counter, zero + i0 // 4, zero, zero + _CANDIDATES)
        for j in tl.static_range(4):
            rank = draw_distinct(words[j], i0 + j, C, size, chosen)
            rank = tl.where(i0 + j < C, rank, 0)
            chosen = tl.where((c[None, :] == i0 + j) & (i0 + j < C), rank[:, None], chosen)
            feature = free_feature(held, rank, D, K).to(out_ptr.dtype.element_ty)
            tl.store(out_ptr + rows * C + i0 + j, feature, mask=rows < tl.where(i0 + j < C, R, 0))


def free_candidates(indices: Tensor, in_features: int, count: int, seed: int, first_row: int) -> Tensor:
    """``count`` distinct features that each row does not hold: [R, count] in indices' dtype."""
    R, K = indices.shape
    out = torch.empty(R, count, dtype=indices.dtype, device=indices.device)
    block_k, block_c = power_of_2(K), power_of_2(count)
    rows = max(1, min(32, 4096 // power_of_2(block_k + block_c)))
    candidates_kernel[(cdiv(R, rows),)](
        indices, out, seed, first_row, R, K, count, in_features, ROWS=rows, BLOCK_K=block_k, BLOCK_C=block_c
    )
    return out


def compile_cases() -> Iterator[CompileCase]:
    for dtype, K, G in (
        (torch.bfloat16, 32, 1),
        (torch.bfloat16, 128, 32),
        (torch.float32, 64, 1),
        (torch.bfloat16, 33, 1),
    ):
        weight = torch.empty(4096, K, dtype=dtype, device="meta")
        indices = torch.empty(4096 // G, K, dtype=torch.uint16, device="meta")

        def launch(weight=weight, indices=indices, K=K, G=G):
            rewire_(weight, indices, [weight], [weight], Rewiring(768, G, False, 1 << 40, fixed=K // 4, bound=0.1))

        def select(weight=weight, K=K, G=G):
            lowest_per_row(weight, 4096 // G, G, False, 1000, K)

        yield CompileCase(f"rewire[{dtype},K={K},G={G}]", launch)
        yield CompileCase(f"global[{dtype},K={K},G={G}]", select)
    held = torch.empty(4096, 64, dtype=torch.uint16, device="meta")
    yield CompileCase("candidates[K=64]", lambda: free_candidates(held, 768, 256, 1 << 40, 0))
