"""Exact best labels of sparse rows, by the inverted index of a fixed fan-in head: for each term the labels that read it."""

import numpy as np

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.kernels.heap import offer, sift_down, sort_best_first


@kernel
def best_labels(row_ptr, terms, values, term_ptr, labels, weights, bias, out_scores, out_labels, start, stop):
    """``out [N, S]``, best first; S is at most the number of labels."""
    num_labels, S = len(bias), out_labels.shape[1]
    scores = np.empty(num_labels, np.float32)
    for i in range(start, stop):
        scores[:] = bias
        for p in range(row_ptr[i], row_ptr[i + 1]):
            value = values[p]
            for q in range(term_ptr[terms[p]], term_ptr[terms[p] + 1]):
                scores[labels[q]] += value * weights[q]
        best, kept = out_scores[i], out_labels[i]
        for j in range(S):
            best[j] = scores[j]
            kept[j] = j
        for j in range(S // 2 - 1, -1, -1):
            sift_down(best, kept, j, S)
        for j in range(S, num_labels):
            if scores[j] > best[0]:  # an equal score with a larger number is no better
                offer(best, kept, scores[j], j)
        sort_best_first(best, kept)


@kernel
def pair_scores(row_ptr, terms, values, num_features, indices, weights, position, pairs, out, start, stop):
    """Adds to ``out [N, S]`` the products of each row with the weights of given labels ``pairs [N, S]``.

    ``position [L]`` is a label's row of ``weights``, -1 where it has none.
    """
    x = np.zeros(num_features, np.float32)
    for i in range(start, stop):
        for p in range(row_ptr[i], row_ptr[i + 1]):
            x[terms[p]] = values[p]
        for s in range(pairs.shape[1]):
            at = position[pairs[i, s]] if pairs[i, s] >= 0 else -1
            if at >= 0:
                total = np.float32(0)
                for k in range(indices.shape[1]):
                    total += weights[at, k] * x[indices[at, k]]
                out[i, s] += total
        for p in range(row_ptr[i], row_ptr[i + 1]):
            x[terms[p]] = 0
