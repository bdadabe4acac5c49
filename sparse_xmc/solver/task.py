"""Rows, labels and settings of a fit, and what its steps share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from sparse_xmc.solver.centroids import centroid_weights
from sparse_xmc.solver.examples import examples
from sparse_xmc.solver.head import Block, TermHead
from sparse_xmc.solver.levels import widened
from sparse_xmc.solver.plan import FREQUENT, Plan
from sparse_xmc.solver.svm import OFFSET, solve

Topology = list[np.ndarray]  # terms of the rare labels and of the frequent ones, best first


@dataclass
class Task:
    """Rows, labels and settings of a fit."""

    x: sp.csr_matrix
    targets: sp.csr_matrix
    plan: Plan
    frequent: np.ndarray
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        self.frequencies = np.asarray(self.targets.sum(axis=0)).ravel().astype(np.int64)
        self.groups = [np.flatnonzero(~self.frequent), np.flatnonzero(self.frequent)]

    @cached_property
    def wide(self) -> sp.csr_matrix:
        """The rows with a 1 behind their terms."""
        return widened(self.x)

    def bar(self, name: str) -> str | None:
        return name if self.progress else None

    def centroid(self, topology: Topology) -> TermHead:
        """Centroids at the terms of a topology."""
        blocks = []
        for labels, indices in zip(self.groups, topology, strict=True):
            blocks.append(Block(labels, indices, centroid_weights(self.x, self.targets, labels, indices)))
        return TermHead(blocks, np.zeros(len(self.frequencies), np.float32))

    def svm(self, lists: np.ndarray, topology: Topology, cost: float, name: str) -> dict[str, np.ndarray]:
        """SVM weights of both groups."""
        found, weights = examples(self.targets, lists), {}
        for key, labels, indices in zip(("rare", "frequent"), self.groups, topology, strict=True):
            shown = self.bar(f"{name}, {key} labels")
            weights[key] = solve(self.x, found, labels, indices, cost=cost, seed=self.seed, progress=shown)
        return weights

    def head(self, topology: Topology, weights: dict[str, np.ndarray]) -> TermHead:
        values = (weights["rare"], weights["frequent"])
        blocks = [Block(*parts) for parts in zip(self.groups, topology, values, strict=True)]
        return TermHead(blocks, np.full(len(self.frequencies), OFFSET))


def connections(task: Task, topology: Topology) -> str:
    """What a topology is, in words."""
    names = (f"of less than {FREQUENT} rows", f"of {FREQUENT} rows and more")
    parts = [
        f"{indices.shape[1]} connections for {len(indices):,} labels {name}"
        for indices, name in zip(topology, names, strict=True)
        if len(indices)
    ]
    return ", ".join(parts)
