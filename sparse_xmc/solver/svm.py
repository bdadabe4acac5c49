"""Squared-hinge SVMs of labels, each on its own examples."""

from __future__ import annotations

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


def solve(
    x: sp.csr_matrix, examples: Examples, labels: np.ndarray, indices: np.ndarray, *, cost: float = 1.0,
    passes: int = 5, tolerance: float = 0.1, seed: int = 0, progress: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Weights of the labels' own terms: minimises ``|w|^2 / 2 + cost * sum max(0, 1 - y (w x - 1))^2`` for each label.

    Args:
        x: ``[N, D]``.
        labels, indices: ``[n]`` and ``[n, K]``, distinct within a row.
        passes: over a label's examples, at most.
        tolerance: gradient of the dual below which a label is solved.
    """
    weight = np.empty(indices.shape, np.float32)
    arguments = _arguments(x, examples, cost, passes, tolerance, seed, labels)
    kernel = kernels.load("dual_svm").solve_labels
    in_parts(kernel, len(labels), _LABELS, *arguments, indices, weight, progress=progress)
    return weight


def select(
    x: sp.csr_matrix, examples: Examples, prior: Block, fan_in: int, *, cost: float = 1.0, passes: int = 3,
    seed: int = 0, progress: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Terms ``[n, fan_in]`` with the largest |w + prior|, best first: w of SVMs on all terms of the prior's labels."""
    indices = np.empty((len(prior.labels), fan_in), np.int32)
    arguments = (*_arguments(x, examples, cost, passes, 0.1, seed), prior.indices, prior.weight, filler(x, fan_in))
    kernel, labels = kernels.load("dual_svm").select_terms, prior.labels.astype(np.int64)
    in_parts(kernel, len(labels), _LABELS, *arguments, labels, indices, progress=progress)
    return indices


def _arguments(
    x: sp.csr_matrix, e: Examples, cost: float, passes: int, tolerance: float, seed: int, *labels: np.ndarray
) -> tuple[Any, ...]:
    numbers = (np.float32(cost), OFFSET, passes, np.float32(tolerance), seed)
    return (*csr(x), x.shape[1], e.ptr, e.rows, e.positives, *numbers, *(v.astype(np.int64) for v in labels))
