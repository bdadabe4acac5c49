"""Rows, labels and settings of a fit, and what its steps share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.solver.centroids import centroid_weights
from sparse_xmc.solver.examples import Examples
from sparse_xmc.solver.head import Block, TermHead
from sparse_xmc.solver.plan import FREQUENT, Plan
from sparse_xmc.solver.svm import OFFSET, path_with_bias, solve_path, widened

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

    def svm(self, found: Examples, topology: Topology, costs: Sequence[float], name: str) -> dict[str, np.ndarray]:
        """SVM weights of both groups, and the biases ``[L]``, at the last of the costs."""
        return {key: values[-1] for key, values in self.svms(found, topology, costs, name).items()}

    def svms(self, found: Examples, topology: Topology, costs: Sequence[float], name: str) -> dict[str, np.ndarray]:
        """The same at each of the costs, along the first axis."""
        weights = {"bias": np.full((len(costs), len(self.frequencies)), OFFSET)}
        for key, labels, indices in zip(("rare", "frequent"), self.groups, topology, strict=True):
            shown = self.bar(f"{name}, {key} labels")
            options: dict[str, Any] = {"seed": self.seed, "progress": shown}
            if found.bias:
                own = path_with_bias(self.wide, found, labels, indices, costs, **options)
                weights[key], weights["bias"][:, labels] = own
            else:
                weights[key] = solve_path(self.x, found, labels, indices, costs, **options)
        return weights

    def head(self, topology: Topology, weights: dict[str, np.ndarray]) -> TermHead:
        values = (weights["rare"], weights["frequent"])
        blocks = [Block(*parts) for parts in zip(self.groups, topology, values, strict=True)]
        return TermHead(blocks, weights["bias"])


def connections(task: Task, topology: Topology) -> str:
    """What a topology is, in words."""
    sizes = [len(indices) for indices in topology]
    widths = {indices.shape[1] for indices in topology if len(indices)}
    if len(widths) == 1:
        return _said(widths.pop(), sum(sizes))
    names = (f"of less than {FREQUENT} rows", f"of {FREQUENT} rows and more")
    parts = zip(topology, sizes, names, strict=True)
    return ", ".join(f"{_said(indices.shape[1], size)} {name}" for indices, size, name in parts if size)


def _said(width: int, size: int) -> str:
    return f"{width:,} connections for {size:,} label{'s' if size != 1 else ''}"
