"""Clusters of labels in front of a head: what a cluster's score says about each of its labels.

A squared hinge is read as a negative log-likelihood: a cluster of score z adds ``-max(0, 1 - z)^2``, times the label's
share, to the score of its labels. Adding logarithms is multiplying what the levels estimate.
"""

import numpy as np
from numba.extending import register_jitable

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.kernels.heap import keep_best
from sparse_xmc.kernels.unsigned import at, span


@register_jitable
def _log_likelihoods(row_ptr, terms, values, i, term_ptr, clusters, weights, bias, out):
    # row_ptr [N + 1], terms, values [nnz], term_ptr [D + 1], clusters, weights [connections], bias, out [C]
    out[:] = bias
    for p in span(row_ptr, i):
        for q in span(term_ptr, at(terms[p])):
            out[at(clusters[q])] += values[p] * weights[q]
    for c in range(len(out)):
        short = max(np.float32(0), 1 - out[c])
        out[c] = -short * short


@kernel
def log_likelihoods(row_ptr, terms, values, term_ptr, clusters, weights, bias, out, start, stop):
    """``out [N, C]`` of all clusters."""
    for i in range(start, stop):
        _log_likelihoods(row_ptr, terms, values, i, term_ptr, clusters, weights, bias, out[i])


@kernel
def best_in_clusters(
    row_ptr, terms, values, term_ptr, labels, weights, bias, cluster_ptr, clusters, cluster_weights, cluster_bias,
    of, share, out_scores, out_labels, start, stop,
):  # fmt: skip
    """``shortlist.best_labels`` with the clusters ``of [T, L]`` of each label, weighted by ``share [T, L]``."""
    levels, num_labels = of.shape
    scores, front = np.empty(num_labels, np.float32), np.empty(len(cluster_bias), np.float32)
    for i in range(start, stop):
        _log_likelihoods(row_ptr, terms, values, i, cluster_ptr, clusters, cluster_weights, cluster_bias, front)
        scores[:] = bias
        for t in range(levels):
            for j in range(num_labels):
                scores[j] += share[t, j] * front[at(of[t, j])]
        for p in span(row_ptr, i):
            for q in span(term_ptr, at(terms[p])):
                scores[at(labels[q])] += values[p] * weights[q]
        keep_best(scores, out_scores[i], out_labels[i])
