"""Squared-hinge SVM of one label after the other, by dual coordinate descent.

Source: Hsieh, Chang, Lin, Keerthi, Sundararajan, "A Dual Coordinate Descent Method for Large-scale Linear SVM", ICML
2008, algorithm 1 with shrinking. A label's examples are ``rows[ptr[l]:ptr[l + 1]]``, the first ``positives[l]`` of them
positive; the score is ``w x + offset``. Every label draws its order from its own stream, so that neither the threads
nor the labels solved beside it change a result.
"""

import numpy as np
from numba.extending import register_jitable

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.kernels.heap import offer, sort_best_first
from sparse_xmc.kernels.unsigned import at, between, span

_SHRINK = 0.02  # gradient from which on an example that holds nothing back is left out of later passes
_ROOM = 1 << 14  # entries of compressed examples at first


@register_jitable
def _seeded(seed, label):
    """splitmix64 of the seed and the label."""
    z = np.uint64(seed) + np.uint64(label + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


@register_jitable
def _shuffle(order, n, state):
    # order [n]
    for j in range(n - 1, 0, -1):
        state ^= state << np.uint64(13)
        state ^= state >> np.uint64(7)
        state ^= state << np.uint64(17)
        k = np.int64(((state >> np.uint64(32)) * np.uint64(j + 1)) >> np.uint64(32))
        order[j], order[k] = order[k], order[j]
    return state


@register_jitable
def _grown(slots, kept, m, needed):
    """Room for ``needed`` entries, the first ``m`` of them as they were."""
    # slots, kept [room]
    if needed <= len(slots):
        return slots, kept
    more_slots, more = np.empty(2 * needed, np.int32), np.empty(2 * needed, np.float32)
    more_slots[:m], more[:m] = slots[:m], kept[:m]
    return more_slots, more


@register_jitable
def _descend(
    first, last, slots, values, square, positives, w, order, alpha, n, cost, offset, passes, tolerance, state, begun
):  # fmt: skip
    """Solves for ``w`` over ``n`` compressed examples, their squared norms in ``square``, from where ``alpha`` and ``w``
    stand: both zero, or, where that is ``begun``, the solution at another cost. Example ``j`` is ``slots`` and
    ``values`` from ``first[j]`` to ``last[j]``.
    """
    # first, last, square, order, alpha [n], slots, values [nnz], w [slots]
    half = np.float32(0.5) / cost
    active = n
    for j in range(n):
        order[j] = j
    for step in range(passes):
        worst = np.float32(0)
        state = _shuffle(order, active, state)
        s = 0
        while s < active:
            j = order[s]
            y = np.float32(1) if j < positives else np.float32(-1)
            score = offset
            for p in between(first[j], last[j]):
                score += w[at(slots[p])] * values[p]
            gradient = y * score - 1 + half * alpha[j]
            if alpha[j] == 0 and gradient >= 0:
                if gradient > _SHRINK and (begun or step > 0):
                    active -= 1
                    order[s], order[active] = order[active], j
                else:
                    s += 1
                continue
            s += 1
            worst = max(worst, abs(gradient))
            updated = max(alpha[j] - gradient / (square[j] + half), np.float32(0))
            change = (updated - alpha[j]) * y
            alpha[j] = updated
            for p in between(first[j], last[j]):
                w[at(slots[p])] += change * values[p]
        if worst < tolerance:
            if active == n:
                break
            active = n  # what was left out is looked at again before the label counts as solved


@register_jitable
def _longest(ptr, labels):
    # ptr [L + 1]
    most = 0
    for label in labels:
        most = max(most, ptr[label + 1] - ptr[label])
    return most


@register_jitable
def _all_terms(indices, num_features):
    """Whether a label has every term, in order."""
    # indices [K]
    for k in range(len(indices)):
        if indices[k] != k:
            return False
    return len(indices) == num_features


@kernel
def solve_labels(
    row_ptr, terms, values, num_features, ptr, rows, positives, costs, offset, passes, tolerance, seed,
    chosen, indices, out_weights, start, stop,
):  # fmt: skip
    """Weights ``[c, n, K]`` of the own terms ``indices [n, K]`` of labels ``chosen [n]`` at each of ``costs [c]``, each begun
    from the solution at the cost before it."""
    K = indices.shape[1]
    slot = np.full(num_features, -1, np.int32)
    most = _longest(ptr, chosen[start:stop])
    alpha, order, square = np.empty(most, np.float32), np.empty(most, np.int32), np.empty(most, np.float32)
    first, last = np.empty(most, np.int64), np.empty(most, np.int64)
    slots, kept = np.empty(_ROOM, np.int32), np.empty(_ROOM, np.float32)
    for i in range(start, stop):
        label = chosen[i]
        begin, n = ptr[label], ptr[label + 1] - ptr[label]
        own_slots, own_values = terms, values
        if _all_terms(indices[i], num_features):
            for j in range(n):
                row = rows[begin + j]
                first[j], last[j] = row_ptr[row], row_ptr[row + 1]
        else:
            for k in range(K):
                slot[indices[i, k]] = k
            m = 0
            for j in range(n):
                row = rows[begin + j]
                first[j] = m
                slots, kept = _grown(slots, kept, m, m + row_ptr[row + 1] - row_ptr[row])
                for p in span(row_ptr, row):
                    k = slot[at(terms[p])]
                    if k >= 0:
                        slots[m], kept[m] = k, values[p]
                        m += 1
                last[j] = m
            for k in range(K):
                slot[indices[i, k]] = -1
            own_slots, own_values = slots, kept
        for j in range(n):
            q = np.float32(0)
            for p in between(first[j], last[j]):
                q += own_values[p] * own_values[p]
            square[j] = q
        alpha[:n] = 0
        out_weights[0, i] = 0
        for c in range(len(costs)):
            w = out_weights[c, i]
            if c:
                w[:] = out_weights[c - 1, i]
            state = _seeded(seed, label)
            _descend(
                first, last, own_slots, own_values, square, positives[label], w, order, alpha, n, costs[c], offset,
                passes, tolerance, state, c > 0,
            )  # fmt: skip


@kernel
def select_terms(
    row_ptr, terms, values, num_features, ptr, rows, positives, cost, offset, passes, tolerance, seed,
    centroid_indices, centroid_weights, filler, chosen, out_indices, start, stop,
):  # fmt: skip
    """For labels ``chosen [n]`` the K terms with the largest |w + centroid|, best first: w of the SVM on all terms."""
    K = out_indices.shape[1]
    slot, touched = np.full(num_features, -1, np.int32), np.empty(num_features, np.int32)
    w, prior = np.zeros(num_features, np.float32), np.zeros(num_features, np.float32)
    most = _longest(ptr, chosen[start:stop])
    alpha, order = np.empty(most, np.float32), np.empty(most, np.int32)
    square, inner = np.empty(most, np.float32), np.empty(most + 1, np.int64)
    slots, kept = np.empty(_ROOM, np.int32), np.empty(_ROOM, np.float32)
    score, item = np.empty(K, np.float32), np.empty(K, np.int32)
    for i in range(start, stop):
        label = chosen[i]
        first, n = ptr[label], ptr[label + 1] - ptr[label]
        m, distinct = 0, 0
        for j in range(n):
            row = rows[first + j]
            inner[j] = m
            slots, kept = _grown(slots, kept, m, m + row_ptr[row + 1] - row_ptr[row])
            q = np.float32(0)
            for p in span(row_ptr, row):
                term = at(terms[p])
                if slot[term] < 0:
                    slot[term] = distinct
                    touched[distinct] = term
                    distinct += 1
                slots[m], kept[m] = slot[term], values[p]
                m += 1
                q += values[p] * values[p]
            square[j] = q
        inner[n] = m
        w[:distinct] = 0
        alpha[:n] = 0
        state = _seeded(seed, label)
        _descend(
            inner[:-1], inner[1:], slots, kept, square, positives[label], w, order, alpha, n, cost, offset, passes,
            tolerance, state, False,
        )  # fmt: skip
        for k in range(centroid_indices.shape[1]):
            prior[centroid_indices[i, k]] = centroid_weights[i, k]
        score[:] = -1
        item[:] = num_features
        for d in range(distinct):
            offer(score, item, abs(w[d] + prior[touched[d]]), touched[d])
        sort_best_first(score, item)
        f = 0
        for k in range(K):
            if item[k] == num_features:  # fewer terms than connections
                while slot[filler[f]] >= 0:
                    f += 1
                item[k] = filler[f]
                f += 1
            out_indices[i, k] = item[k]
        for k in range(centroid_indices.shape[1]):
            prior[centroid_indices[i, k]] = 0
        for d in range(distinct):
            slot[touched[d]] = -1
