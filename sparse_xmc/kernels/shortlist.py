"""Exact best labels of sparse rows, by the inverted index of a fixed fan-in head: for each term the labels that read it."""

import numpy as np

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.kernels.heap import keep_best
from sparse_xmc.kernels.unsigned import at, span


@kernel
def best_labels(row_ptr, terms, values, term_ptr, labels, weights, bias, out_scores, out_labels, start, stop):
    """``out [N, S]``, best first; S is at most the number of labels."""
    scores = np.empty(len(bias), np.float32)
    for i in range(start, stop):
        scores[:] = bias
        for p in span(row_ptr, i):
            value = values[p]
            for q in span(term_ptr, at(terms[p])):
                scores[at(labels[q])] += value * weights[q]
        keep_best(scores, out_scores[i], out_labels[i])


@kernel
def pair_scores(row_ptr, terms, values, num_features, indices, weights, position, pairs, out, start, stop):
    """Adds to ``out [N, S]`` the products of each row with the weights of given labels ``pairs [N, S]``.

    ``position [L]`` is a label's row of ``weights``, -1 where it has none.
    """
    x = np.zeros(num_features, np.float32)
    for i in range(start, stop):
        for p in span(row_ptr, i):
            x[at(terms[p])] = values[p]
        for s in range(pairs.shape[1]):
            label = position[at(pairs[i, s])] if pairs[i, s] >= 0 else -1
            if label >= 0:
                total = np.float32(0)
                for k in range(indices.shape[1]):
                    total += weights[label, k] * x[at(indices[label, k])]
                out[i, s] += total
        for p in span(row_ptr, i):
            x[at(terms[p])] = 0
