"""CPU kernels of ``prune_regrow_``: a row of indices is scored, pruned and regrown while it is in the cache."""

from collections.abc import Sequence

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from sparse_xmc.kernels import threads
from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops._contract import Rewiring
from sparse_xmc.ops.cpu_kernels._integer_lanes import (
    count_at_most,
    differs,
    higher,
    lower,
    lowest_bit,
    middle,
    raise_low,
    sink_high,
    with_bit,
)
from sparse_xmc.ops.cpu_kernels._magnitude import lowest_per_row, score_row  # noqa: F401 (an op of this back end)
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy, decode, store
from sparse_xmc.ops.cpu_kernels._philox import philox
from sparse_xmc.ops.cpu_kernels._sampling import LANES, draw, make_distinct, ranks_to_free_features, row_tasks
from sparse_xmc.ops.cpu_kernels._simd import load, splat
from sparse_xmc.ops.cpu_kernels._simd import store as store_vector

_WORD = 32  # slots in a word of a bit set
_REGROW, _CANDIDATES, _WEIGHTS = 1, 2, 3  # streams of random numbers


@register_jitable
def _thresholds(keys, need, found):
    """For each of the ``LANES`` rows of ``keys [K * LANES]``, in ``found``: a number that exactly ``need`` keys do not
    exceed or, where ties prevent that, the ``need``-th lowest key. Bisection in all lanes at once."""
    # keys [K, LANES], need, found [LANES]
    wanted = load(need, 0, LANES)
    zero = splat(np.uint32(0), LANES)
    low = load(keys, 0, LANES)
    high = low
    for i in range(LANES, keys.shape[0], LANES):
        key = load(keys, i, LANES)
        low, high = lower(low, key), higher(high, key)
    while differs(low, high):
        probe, at_most = middle(low, high), zero
        for i in range(0, keys.shape[0], LANES):
            at_most = count_at_most(at_most, load(keys, i, LANES), probe)
        low = raise_low(low, probe, at_most, wanted)
        high = sink_high(high, probe, at_most, wanted)
    store_vector(found, 0, low)


@register_jitable
def _lowest(keys, thresholds, need, counts, sets):
    """Bit sets ``sets [K / 32, LANES]`` of the slots whose keys do not exceed a row's threshold; of equal keys beyond
    ``need`` the last are left out. ``counts [LANES]`` is scratch."""
    # keys [K, LANES], thresholds, need, counts [LANES], sets [words, LANES]
    K = keys.shape[0] // LANES
    bound, zero = load(thresholds, 0, LANES), splat(np.uint32(0), LANES)
    at_most = zero
    for first in range(0, K, _WORD):
        bits = zero
        for k in range(first, min(K, first + _WORD)):
            key = load(keys, k * LANES, LANES)
            at_most = count_at_most(at_most, key, bound)
            bits = with_bit(bits, key, bound, k - first)
        store_vector(sets, first // _WORD * LANES, bits)
    store_vector(counts, 0, at_most)
    for t in range(LANES):
        surplus = np.int64(counts[t]) - np.int64(need[t])
        k = K
        while surplus > 0:
            k -= 1
            if keys[k * LANES + t] == thresholds[t]:
                sets[k // _WORD * LANES + t] ^= np.uint32(1) << np.uint32(k % _WORD)
                surplus -= 1


@register_jitable
def _below(keys, t, threshold):
    # keys [K, LANES]
    count = 0
    for i in range(t, keys.shape[0], LANES):
        count += keys[i] < threshold
    return count


@register_jitable
def _slots(sets, row, found):
    """Fills ``found`` with the slots of a row's bit set, ascending, and returns their number."""
    # sets [rows, words], found [K]
    count = 0
    for word in range(sets.shape[1]):
        bits = sets[row, word]
        while bits:
            found[count] = word * _WORD + np.int64(lowest_bit(bits))
            bits &= bits - np.uint32(1)
            count += 1
    return count


@register_jitable
def _new_weight(seed, label, k, bound):
    words = philox(seed, label, k >> 2, 0, _WEIGHTS)
    unit = np.float32(words[k & 3] >> np.uint32(8)) * np.float32(2.0**-23) - np.float32(1)
    return np.float32(unit * bound)


@register_jitable
def _regrow(indices, weight, row, first_row, group_size, found, fresh, count, seed, bound):
    # indices [R, K], weight [L, K], found (slots), fresh (features) [count]
    for i in range(count):
        indices[row, found[i]] = fresh[i]
    for label in range(row * group_size, min((row + 1) * group_size, weight.shape[0])):
        if bound > 0:
            for i in range(count):
                value = _new_weight(seed, first_row * group_size + label, np.int64(found[i]), bound)
                store(weight, label, found[i], value)
        else:
            for i in range(count):
                store(weight, label, found[i], np.float32(0))


@kernel
def _rewire(
    weight, indices, counts, candidates, fixed, threshold, in_features, group_size, use_max, seed, bound, first_row,
    pruned, start, stop,
):  # fmt: skip
    """Rewires the rows from ``start``, leaves bit sets of their slots in ``pruned`` and returns the number of these."""
    # weight [L, K], indices [R, K], counts [R] or [0], candidates [R, C] or [0, 0], pruned [rows, words] uint32
    # keys [K, LANES], need, low, scratch [LANES], sets [words, LANES], found, fresh [K], drawn [K + 3, LANES], marks [D]
    K = indices.shape[1]
    free = in_features - K
    limit = min(free, K)
    acc, keys = np.empty(K, np.float32), np.zeros(K * LANES, np.uint32)
    need, low, scratch = np.zeros(LANES, np.uint32), np.empty(LANES, np.uint32), np.empty(LANES, np.uint32)
    sets = np.empty(pruned.shape[1] * LANES, np.uint32)
    found, fresh, drawn = np.empty(K, np.uint64), np.empty(K, np.uint32), np.empty((K + 3, LANES), np.uint32)
    held_marks, drawn_marks = np.zeros(in_features, np.uint16), np.zeros(in_features, np.uint16)
    total = 0
    for tile in range(start, stop, LANES):
        lanes = min(LANES, stop - tile)
        need[lanes:] = 0
        for t in range(lanes):
            row = tile + t
            score_row(weight, row, group_size, use_max, acc, keys, t, LANES)
            if counts.shape[0] > 0:
                need[t] = counts[row]
            elif fixed >= 0:
                need[t] = fixed
            else:
                need[t] = min(_below(keys, t, threshold), limit)
        _thresholds(keys, need, low)
        _lowest(keys, low, need, scratch, sets)
        if candidates.shape[0] == 0:
            draw(seed, first_row + tile, _REGROW, need, free, drawn)
        for t in range(lanes):
            row = tile + t
            for word in range(pruned.shape[1]):
                pruned[row - start, word] = sets[word * LANES + t]
            count = _slots(pruned, row - start, found)
            total += count
            if candidates.shape[0] > 0:
                for i in range(count):
                    fresh[i] = candidates[row, i]
            elif count > 0:
                stamp = np.uint16(row - start + 1)
                make_distinct(drawn, t, count, free, fresh, drawn_marks, stamp)
                ranks_to_free_features(indices, row, in_features, fresh, count, held_marks, stamp)
            _regrow(indices, weight, row, first_row, group_size, found, fresh, count, seed, bound)
    return total


@kernel
def _reset(state, to_mean, group_size, pruned, start, stop):
    # state [L, K], pruned [rows, words]
    K = state.shape[1]
    found = np.empty(K, np.uint64)
    for row in range(start, stop):
        count = _slots(pruned, row - start, found)
        if count == 0:
            continue
        for label in range(row * group_size, min((row + 1) * group_size, state.shape[0])):
            mean = 0.0
            if to_mean:
                for k in range(K):
                    mean += np.float64(decode(state[label, k]))
                mean /= K
            for i in range(count):
                store(state, label, found[i], np.float32(mean))


def rewire_(
    weight: Tensor, indices: Tensor, state: Sequence[Tensor], mean_state: Sequence[Tensor], plan: Rewiring
) -> Tensor:
    """Prunes and regrows in place; the number of changed slots of ``indices``."""
    R, K = indices.shape
    key = np.array(plan.threshold, np.float32).view(np.uint32)[()]
    counted = np.empty(0, np.int16) if plan.counts is None else as_numpy(plan.counts)
    listed = np.empty((0, 0), np.int32) if plan.candidates is None else as_numpy(plan.candidates)
    weights, places = as_numpy(weight), as_numpy(indices)
    treated = [(as_numpy(s), to_mean) for tensors, to_mean in ((state, False), (mean_state, True)) for s in tensors]
    totals = []

    def rewire_rows(start: int, stop: int) -> None:
        pruned = np.empty((stop - start, -(-K // _WORD)), np.uint32)
        totals.append(
            _rewire(
                weights, places, counted, listed, plan.fixed, key, plan.in_features, plan.group_size, plan.use_max,
                plan.seed, np.float32(plan.bound), plan.first_row, pruned, start, stop,
            )
        )  # fmt: skip
        for array, to_mean in treated:
            _reset(array, to_mean, plan.group_size, pruned, start, stop)

    threads.run(rewire_rows, row_tasks(R))
    return torch.tensor(sum(totals), dtype=torch.int64, device="cpu")


@kernel
def _free_candidates(indices, out, in_features, seed, first_row, start, stop):
    # indices [R, K], out [R, count], drawn [count + 3, LANES], marks [D]
    free, count = in_features - indices.shape[1], out.shape[1]
    need, drawn = np.full(LANES, count, np.uint32), np.empty((count + 3, LANES), np.uint32)
    fresh = np.empty(count, np.uint32)
    held_marks, drawn_marks = np.zeros(in_features, np.uint16), np.zeros(in_features, np.uint16)
    for row in range(start, stop):
        t, stamp = (row - start) % LANES, np.uint16(row - start + 1)
        if t == 0:
            draw(seed, first_row + row, _CANDIDATES, need, free, drawn)
        make_distinct(drawn, t, count, free, fresh, drawn_marks, stamp)
        ranks_to_free_features(indices, row, in_features, fresh, count, held_marks, stamp)
        for i in range(count):
            out[row, i] = fresh[i]


def free_candidates(indices: Tensor, in_features: int, count: int, seed: int, first_row: int) -> Tensor:
    """``count`` distinct features that each row does not hold: [R, count] in indices' dtype."""
    out = torch.empty(indices.shape[0], count, dtype=indices.dtype, device="cpu")
    tasks = row_tasks(indices.shape[0])
    threads.run(_free_candidates, tasks, as_numpy(indices), as_numpy(out), in_features, seed, first_row)
    return out
