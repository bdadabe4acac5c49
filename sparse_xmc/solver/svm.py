"""Squared-hinge SVMs of labels, each on its own examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc import kernels
from sparse_xmc.solver.centroids import filler
from sparse_xmc.solver.examples import Examples
from sparse_xmc.solver.head import Block, csr
from sparse_xmc.solver.threads import in_parts

OFFSET = np.float32(-1)  # of every score: a label that no term speaks for lies at the margin of a negative
_LABELS = 64  # a task


def solve_path(
    x: sp.csr_matrix, examples: Examples, labels: np.ndarray, indices: np.ndarray, costs: Sequence[float], *,
    passes: int = 5, tolerance: float = 0.1, seed: int = 0, progress: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Weights ``[c, n, K]`` of the labels' own terms: minimises ``|w|^2 / 2 + cost * sum max(0, 1 - y (w x - 1))^2`` for
    each label at each of the costs, each begun from the solution at the one before it.

    Args:
        x: ``[N, D]``.
        labels, indices: ``[n]`` and ``[n, K]``, distinct within a row.
        passes: over a label's examples at a cost, at most.
        tolerance: gradient of the dual below which a label is solved.
    """
    weight = np.empty((len(costs), *indices.shape), np.float32)
    arguments = _arguments(x, examples, np.array(costs, np.float32), passes, tolerance, seed, labels)
    kernel = kernels.load("dual_svm").solve_labels
    in_parts(kernel, len(labels), _LABELS, *arguments, indices, weight, progress=progress)
    return weight


def solve(
    x: sp.csr_matrix, examples: Examples, labels: np.ndarray, indices: np.ndarray, *, cost: float = 1.0, **options: Any
) -> np.ndarray:
    """``solve_path`` at one cost: ``[n, K]``."""
    return solve_path(x, examples, labels, indices, (cost,), **options)[0]


def select(
    x: sp.csr_matrix, examples: Examples, prior: Block, fan_in: int, *, cost: float = 1.0, passes: int = 3,
    seed: int = 0, progress: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Terms ``[n, fan_in]`` with the largest |w + prior|, best first: w of SVMs on all terms of the prior's labels."""
    indices = np.empty((len(prior.labels), fan_in), np.int32)
    arguments = (
        *_arguments(x, examples, np.float32(cost), passes, 0.1, seed),
        prior.indices,
        prior.weight,
        filler(x, fan_in),
    )
    kernel, labels = kernels.load("dual_svm").select_terms, prior.labels.astype(np.int64)
    in_parts(kernel, len(labels), _LABELS, *arguments, labels, indices, progress=progress)
    return indices


def path_with_bias(
    wide: sp.csr_matrix, examples: Examples, labels: np.ndarray, indices: np.ndarray, costs: Sequence[float],
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """``solve_path`` with a bias as one more weight: weights ``[c, n, K]``, biases ``[c, n]``; rows come from ``widened``."""
    constant = np.full((len(labels), 1), wide.shape[1] - 1, np.int32)
    weight = solve_path(wide, examples, labels, np.hstack([indices, constant]), costs, **options)
    return np.ascontiguousarray(weight[..., :-1]), weight[..., -1] + OFFSET


def solve_with_bias(
    wide: sp.csr_matrix, examples: Examples, labels: np.ndarray, indices: np.ndarray, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """``path_with_bias`` at a cost of 1: ``[n, K]`` and ``[n]``."""
    weight, bias = path_with_bias(wide, examples, labels, indices, (1.0,), **options)
    return weight[0], bias[0]


def select_with_bias(
    wide: sp.csr_matrix, examples: Examples, labels: np.ndarray, fan_in: int, **options: Any
) -> np.ndarray:
    """Terms ``[n, fan_in]`` with the largest weight in SVMs on all terms and a bias, best first."""
    constant = np.full((len(labels), 1), wide.shape[1] - 1, np.int32)
    first = Block(labels, constant, np.full(constant.shape, np.inf, np.float32))
    return np.ascontiguousarray(select(wide, examples, first, fan_in + 1, **options)[:, 1:])


def widened(x: sp.csr_matrix) -> sp.csr_matrix:
    """Rows with a 1 behind their terms."""
    N, D = x.shape
    ends = x.indptr[1:]
    indices, data = np.insert(x.indices, ends, D), np.insert(x.data, ends, 1).astype(np.float32, copy=False)
    wide = sp.csr_matrix((data, indices, x.indptr + np.arange(N + 1, dtype=x.indptr.dtype)), shape=(N, D + 1))
    wide.sort_indices()
    return wide


def _arguments(
    x: sp.csr_matrix,
    e: Examples,
    cost: np.ndarray | np.float32,
    passes: int,
    tolerance: float,
    seed: int,
    *labels: np.ndarray,
) -> tuple[Any, ...]:
    numbers = (cost, OFFSET, passes, np.float32(tolerance), seed)
    return (*csr(x), x.shape[1], e.ptr, e.rows, e.positives, *numbers, *(v.astype(np.int64) for v in labels))
