"""The heaviest terms of label centroids, one label after the other: no ``[L, D]``, dense or sparse, ever exists."""

import numpy as np

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.kernels.heap import offer, sort_best_first
from sparse_xmc.kernels.unsigned import at, span


@kernel
def centroid_terms(
    label_ptr,
    label_rows,
    row_ptr,
    terms,
    values,
    num_features,
    power,
    filler,
    chosen,
    out_indices,
    out_weights,
    start,
    stop,
):
    """The K largest entries of the summed rows of labels ``chosen [n]``, over their norm to ``power``, the largest first.

    A label with fewer terms is filled up with ``filler`` (at least ``2 K`` distinct terms), weight 0.
    """
    K = out_indices.shape[1]
    acc = np.zeros(num_features, np.float32)
    touched = np.empty(num_features, np.int32)
    held = np.zeros(num_features, np.bool_)
    score, item = np.empty(K, np.float32), np.empty(K, np.int32)
    for i in range(start, stop):
        label = chosen[i]
        n = 0
        for r in range(label_ptr[label], label_ptr[label + 1]):
            row = label_rows[r]
            for p in span(row_ptr, row):
                if acc[at(terms[p])] == 0:
                    touched[n] = terms[p]
                    n += 1
                acc[at(terms[p])] += values[p]
        squares = np.float32(0)
        score[:] = 0
        item[:] = num_features
        for j in range(n):
            squares += acc[at(touched[j])] * acc[at(touched[j])]
            if acc[at(touched[j])] != 0:
                offer(score, item, abs(acc[at(touched[j])]), touched[j])
        sort_best_first(score, item)
        scale = squares ** (-0.5 * power) if squares > 0 else np.float32(0)
        for k in range(K):
            if item[k] < num_features:
                held[item[k]] = True
        f = 0
        for k in range(K):
            if item[k] == num_features:
                while held[filler[f]]:
                    f += 1
                item[k] = filler[f]
                f += 1
                out_weights[i, k] = 0
            else:
                out_weights[i, k] = acc[item[k]] * scale
            out_indices[i, k] = item[k]
        for k in range(K):
            held[item[k]] = False
        for j in range(n):
            acc[at(touched[j])] = 0


@kernel
def centroid_values(
    label_ptr, label_rows, row_ptr, terms, values, num_features, power, chosen, indices, out_weights, start, stop
):
    """The same of given terms ``indices [n, K]``."""
    acc = np.zeros(num_features, np.float32)
    for i in range(start, stop):
        label = chosen[i]
        for r in range(label_ptr[label], label_ptr[label + 1]):
            row = label_rows[r]
            for p in span(row_ptr, row):
                acc[at(terms[p])] += values[p]
        squares = np.float32(0)
        for k in range(indices.shape[1]):
            out_weights[i, k] = acc[at(indices[i, k])]
        for r in range(label_ptr[label], label_ptr[label + 1]):
            row = label_rows[r]
            for p in span(row_ptr, row):
                squares += acc[at(terms[p])] * acc[at(terms[p])]
                acc[at(terms[p])] = 0
        scale = squares ** (-0.5 * power) if squares > 0 else np.float32(0)
        for k in range(indices.shape[1]):
            out_weights[i, k] *= scale
