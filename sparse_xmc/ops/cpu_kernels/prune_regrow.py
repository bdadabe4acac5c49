"""CPU kernels of ``prune_regrow_``: a row of indices is scored, pruned and regrown while it is in the cache."""

from collections.abc import Sequence

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from sparse_xmc.ops.cpu_kernels import _threads
from sparse_xmc.ops.cpu_kernels._integer_lanes import (
    count_at_most,
    differs,
    higher,
    lower,
    middle,
    raise_low,
    sink_high,
)
from sparse_xmc.ops.cpu_kernels._magnitude import lowest_counts, score_row
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy, decode, kernel, store
from sparse_xmc.ops.cpu_kernels._philox import philox
from sparse_xmc.ops.cpu_kernels._sampling import ranks_to_free_features, sample_distinct
from sparse_xmc.ops.cpu_kernels._simd import load, splat
from sparse_xmc.ops.cpu_kernels._simd import store as store_vector

_CHUNK = 1 << 19  # slots whose changes are remembered at a time, for the state tensors
_LANES = 16  # rows that are searched together
_REGROW, _CANDIDATES, _WEIGHTS = 1, 2, 3  # streams of random numbers


@register_jitable
def _thresholds(keys, need, found):
    """For each of the ``_LANES`` rows of ``keys [K * _LANES]``, in ``found``: a number that exactly ``need`` keys do not
    exceed or, where ties prevent that, the ``need``-th lowest key. Bisection in all lanes at once."""
    wanted = load(need, 0, _LANES)
    zero = splat(np.uint32(0), _LANES)
    low = load(keys, 0, _LANES)
    high = low
    for i in range(_LANES, keys.shape[0], _LANES):
        key = load(keys, i, _LANES)
        low, high = lower(low, key), higher(high, key)
    while differs(low, high):
        probe, at_most = middle(low, high), zero
        for i in range(0, keys.shape[0], _LANES):
            at_most = count_at_most(at_most, load(keys, i, _LANES), probe)
        low = raise_low(low, probe, at_most, wanted)
        high = sink_high(high, probe, at_most, wanted)
    store_vector(found, 0, low)


@register_jitable
def _lowest(keys, lane, threshold, count, slots):
    """Fills ``slots[:count]``, ascending, with the lowest keys of a lane; among equal ones the first."""
    K = keys.shape[0]
    ties = count
    for k in range(K):
        ties -= keys[k, lane] < threshold
    found = 0
    for k in range(K):
        equal = keys[k, lane] == threshold
        slots[found] = k
        found += (keys[k, lane] < threshold) | (equal & (ties > 0))
        ties -= equal


@register_jitable
def _regrow(indices, weight, row, first_row, group_size, found, fresh, count, seed, bound):
    for i in range(count):
        indices[row, found[i]] = fresh[i]
    for label in range(row * group_size, min((row + 1) * group_size, weight.shape[0])):
        for i in range(count):
            k = np.int64(found[i])
            value = np.float32(0)
            if bound > 0:
                words = philox(seed, first_row * group_size + label, k >> 2, 0, _WEIGHTS)
                unit = np.float32(words[k & 3] >> np.uint32(8)) * np.float32(2.0**-23) - np.float32(1)
                value = np.float32(unit * bound)
            store(weight, label, k, value)


@kernel
def _rewire(
    weight, indices, counts, candidates, fixed, threshold, in_features, group_size, use_max, seed, bound, first_row,
    chunk, slots, changed, totals, task, start, stop,
):  # fmt: skip
    K = indices.shape[1]
    acc, flat = np.empty(K, np.float32), np.zeros(K * _LANES, np.uint32)
    keys = flat.reshape(K, _LANES)
    need, low = np.zeros(_LANES, np.uint32), np.empty(_LANES, np.uint32)
    found, fresh = np.empty(K + 1, np.uint16), np.empty(K, np.uint32)
    free = in_features - K
    limit = min(free, K)
    marks = np.zeros(in_features, np.uint8)
    total = 0
    for tile in range(start, stop, _LANES):
        lanes = min(_LANES, stop - tile)
        need[lanes:] = 0
        for t in range(lanes):
            row = tile + t
            score_row(weight, row, group_size, use_max, acc, keys[:, t])
            if counts.shape[0] > 0:
                count = np.int64(counts[row])
            elif fixed >= 0:
                count = fixed
            else:
                count = 0
                for k in range(K):
                    count += keys[k, t] < threshold
                count = min(count, limit)
            need[t] = count
            changed[row - chunk] = count
            total += count
        _thresholds(flat, need, low)
        for t in range(lanes):
            row, count = tile + t, np.int64(need[t])
            if count == 0:
                continue
            _lowest(keys, t, low[t], count, found)
            if candidates.shape[0] > 0:
                for i in range(count):
                    fresh[i] = candidates[row, i]
            else:
                sample_distinct(seed, first_row + row, _REGROW, count, free, fresh, marks)
                ranks_to_free_features(indices[row], in_features, fresh, count, marks)
            _regrow(indices, weight, row, first_row, group_size, found, fresh, count, seed, bound)
            for i in range(count):
                slots[row - chunk, i] = found[i]
    totals[task] += total


@kernel
def _reset(state, to_mean, group_size, chunk, slots, changed, start, stop):
    K = state.shape[1]
    for row in range(start, stop):
        count = changed[row - chunk]
        if count == 0:
            continue
        for label in range(row * group_size, min((row + 1) * group_size, state.shape[0])):
            mean = 0.0
            if to_mean:
                for k in range(K):
                    mean += np.float64(decode(state[label, k]))
                mean /= K
            for i in range(count):
                store(state, label, np.int64(slots[row - chunk, i]), np.float32(mean))


def rewire_(
    weight: Tensor,
    indices: Tensor,
    state: Sequence[Tensor],
    mean_state: Sequence[Tensor],
    counts: Tensor | None,
    candidates: Tensor | None,
    fixed: int,
    threshold: float,
    in_features: int,
    group_size: int,
    use_max: bool,
    seed: int,
    bound: float,
    first_row: int,
) -> Tensor:
    """Prunes ``counts[r]`` slots of each row, or ``fixed`` if that is >= 0, or those that score below ``threshold``
    (a float32 number), and regrows them from ``candidates [R, >= count]`` or at random. Returns their number."""
    R, K = indices.shape
    chunk_rows = max(1, min(R, _CHUNK // K))
    slots = np.empty((chunk_rows, min(K, in_features - K)), np.uint16)
    changed = np.empty(chunk_rows, np.int32)
    parts = 4 * _threads.num_threads()
    totals = np.zeros(parts, np.int64)
    key = np.array(threshold, np.float32).view(np.uint32)[()]
    counted = np.empty(0, np.int16) if counts is None else as_numpy(counts)
    listed = np.empty((0, 0), np.int32) if candidates is None else as_numpy(candidates)
    for chunk in range(0, R, chunk_rows):
        spans = [(chunk + a, chunk + b) for a, b in _threads.split(min(chunk_rows, R - chunk), parts)]
        _threads.run(
            _rewire, [(i, *span) for i, span in enumerate(spans)], as_numpy(weight), as_numpy(indices), counted, listed,
            fixed, key, in_features, group_size, use_max, seed, np.float32(bound), first_row,
            chunk, slots, changed, totals,
        )  # fmt: skip
        for tensors, to_mean in ((state, False), (mean_state, True)):
            for tensor in tensors:
                _threads.run(_reset, spans, as_numpy(tensor), to_mean, group_size, chunk, slots, changed)
    return torch.tensor(int(totals.sum()), dtype=torch.int64)


def lowest_per_row(weight: Tensor, rows: int, group_size: int, use_max: bool, number: int, limit: int) -> Tensor:
    """How many of the ``number`` lowest scores lie in each row, at most ``limit``: [rows] int16."""
    counts = torch.empty(rows, dtype=torch.int16)
    lowest_counts(weight, rows, group_size, use_max, number, limit, counts)
    return counts


@kernel
def _free_candidates(indices, out, in_features, seed, first_row, start, stop):
    free, count = in_features - indices.shape[1], out.shape[1]
    marks = np.zeros(in_features, np.uint8)
    for row in range(start, stop):
        sample_distinct(seed, first_row + row, _CANDIDATES, count, free, out[row], marks)
        ranks_to_free_features(indices[row], in_features, out[row], count, marks)


def free_candidates(indices: Tensor, in_features: int, count: int, seed: int, first_row: int) -> Tensor:
    """``count`` distinct features that each row does not hold: [R, count] in indices' dtype."""
    out = torch.empty(indices.shape[0], count, dtype=indices.dtype)
    tasks = _threads.split(indices.shape[0], 4 * _threads.num_threads())
    _threads.run(_free_candidates, tasks, as_numpy(indices), as_numpy(out), in_features, seed, first_row)
    return out
