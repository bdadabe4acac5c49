"""A fixed fan-in head on sparse terms as plain arrays, and its inverted index, which scores rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp

from sparse_xmc import kernels
from sparse_xmc.solver.threads import in_parts

_ROWS = 256  # a task
_COUNTED = 1 << 20  # entries


def csr(x: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays of a CSR matrix in the types that the kernels are compiled for."""
    return x.indptr.astype(np.int64), x.indices.astype(np.int32, copy=False), x.data.astype(np.float32, copy=False)


def column_counts(x: sp.csr_matrix) -> np.ndarray:
    """Entries of each column ``[D]``, counted in parts: NumPy widens what it counts to 64 bits."""
    counts = np.zeros(x.shape[1], np.int64)
    for start in range(0, x.nnz, _COUNTED):
        counts += np.bincount(x.indices[start : start + _COUNTED], minlength=x.shape[1])
    return counts


@dataclass
class Block:
    """Labels ``[n]`` with K connections each: ``indices [n, K]``, distinct within a row, ``weight [n, K]``."""

    labels: np.ndarray
    indices: np.ndarray
    weight: np.ndarray


@dataclass
class Level:
    """Clusters of labels in front of a head: a label's score gains ``-share max(0, 1 - z)^2``, z that of its cluster.

    Args:
        clusters: a head of the clusters, without levels of its own.
        of: the cluster of each label ``[L]``.
        share: ``[L]``, 0 where clusters say nothing about a label.
    """

    clusters: TermHead
    of: np.ndarray
    share: np.ndarray

    def log_likelihoods(self, x: sp.csr_matrix) -> np.ndarray:
        """``-max(0, 1 - z)^2`` of all clusters ``[N, C]``."""
        index = self.clusters.invert(x.shape[1])
        out = np.empty((x.shape[0], len(index.bias)), np.float32)
        arguments = (*csr(x), index.term_ptr, index.labels, index.weights, index.bias, out)
        in_parts(kernels.load("clusters").log_likelihoods, x.shape[0], _ROWS, *arguments)
        return out


@dataclass
class TermHead:
    """Scores ``x[indices] . weight + bias``; the blocks hold all labels, each once, ``bias [L]`` is in their order.

    Levels add what clusters of labels say.
    """

    blocks: Sequence[Block]
    bias: np.ndarray
    levels: Sequence[Level] = field(default=())

    def invert(self, num_features: int) -> InvertedIndex:
        """The same by term; connections of weight 0 are left out."""
        readers, ptr = kernels.load("inversion"), np.zeros(num_features + 1, np.int64)
        for block in self.blocks:
            readers.count_readers(block.indices, block.weight, ptr[1:])
        np.cumsum(ptr, out=ptr)
        at, labels, weights = ptr[:-1].copy(), np.empty(ptr[-1], np.int32), np.empty(ptr[-1], np.float32)
        for block in self.blocks:
            readers.place_readers(block.labels.astype(np.int64), block.indices, block.weight, at, labels, weights)
        return InvertedIndex(ptr, labels, weights, self.bias, self._front(num_features))

    def _front(self, num_features: int) -> Front | None:
        if not self.levels:
            return None
        blocks, of, first = [], [], 0
        for level in self.levels:
            blocks += [Block(b.labels + first, b.indices, b.weight) for b in level.clusters.blocks]
            of.append(level.of.astype(np.int32) + np.int32(first))
            first += len(level.clusters.bias)
        index = TermHead(blocks, np.concatenate([level.clusters.bias for level in self.levels])).invert(num_features)
        return Front(index, np.stack(of), np.stack([level.share.astype(np.float32) for level in self.levels]))

    def products(self, x: sp.csr_matrix, labels: np.ndarray) -> np.ndarray:
        """``x[i] . weight`` of given labels ``[N, S]`` (-1: 0), without the bias and without levels."""
        out = np.zeros(labels.shape, np.float32)
        for block in self.blocks:
            position = np.full(len(self.bias), -1, np.int64)
            position[block.labels] = np.arange(len(block.labels))
            arguments = (*csr(x), x.shape[1], block.indices, block.weight, position, labels, out)
            in_parts(kernels.load("shortlist").pair_scores, x.shape[0], _ROWS, *arguments)
        return out


@dataclass
class Front:
    """The clusters of all levels in one index, of each level the cluster of each label ``[T, L]`` and its share."""

    clusters: InvertedIndex
    of: np.ndarray
    share: np.ndarray


@dataclass
class InvertedIndex:
    """Labels and weights of each term, ``labels[term_ptr[t]:term_ptr[t + 1]]``, and the bias ``[L]``."""

    term_ptr: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    front: Front | None = None

    def topk(self, x: sp.csr_matrix, k: int, *, progress: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """``(scores, labels) [N, min(k, L)]``, best first, ties by the smaller label: exact, without ``[N, L]``."""
        k = min(k, len(self.bias))
        scores, labels = np.empty((x.shape[0], k), np.float32), np.empty((x.shape[0], k), np.int32)
        arguments: tuple[np.ndarray, ...] = (*csr(x), self.term_ptr, self.labels, self.weights, self.bias)
        kernel = kernels.load("shortlist").best_labels
        if self.front is not None:
            c, kernel = self.front.clusters, kernels.load("clusters").best_in_clusters
            arguments += (c.term_ptr, c.labels, c.weights, c.bias, self.front.of, self.front.share)
        in_parts(kernel, x.shape[0], _ROWS, *arguments, scores, labels, progress=progress)
        return scores, labels
