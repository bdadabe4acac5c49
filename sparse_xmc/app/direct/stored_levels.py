"""Clusters of labels in front of the head of a direct run, as arrays of its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.direct.checks import check_array, check_block
from sparse_xmc.solver.head import Block, Level, TermHead

PARTS = ("indices", "weight", "bias", "of", "share")


@dataclass(frozen=True)
class StoredLevel:
    """A level: ``indices`` and ``weight [C, K]`` and ``bias [C]`` of its clusters, of each label the cluster and its share
    ``[L]``.

    Raises:
        ValueError: from ``check``: shapes, dtypes or indices do not fit together.
    """

    indices: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    of: np.ndarray
    share: np.ndarray

    @classmethod
    def from_solution(cls, level: Level, index: type[np.generic]) -> StoredLevel:
        (block,) = level.clusters.blocks
        return cls(
            block.indices.astype(index),
            block.weight.astype(np.float16),
            level.clusters.bias.astype(np.float32),
            level.of.astype(np.uint16),
            level.share.astype(np.float16),
        )

    def check(self, number: int, in_features: int, num_labels: int) -> None:
        name = f"clusters_{number}"
        check_block(f"{name}_indices", self.indices, f"{name}_weight", self.weight, in_features)
        check_array(f"{name}_bias", self.bias, np.float32, (len(self.indices),))
        check_array(f"{name}_of", self.of, np.uint16, (num_labels,))
        check_array(f"{name}_share", self.share, np.float16, (num_labels,))
        if num_labels and int(self.of.max()) >= len(self.indices):
            raise ValueError(f"{name}_of holds {int(self.of.max())}, of {len(self.indices)} clusters")

    def matrix(self, in_features: int) -> sp.csr_matrix:
        """The weights of the clusters, float32 ``[C, D]``."""
        return matrix_of([(self.indices, self.weight)], in_features)

    def solution(self) -> Level:
        """The level as the solver has it."""
        indices, weight = self.indices.astype(np.int32, copy=False), self.weight.astype(np.float32)
        clusters = TermHead([Block(np.arange(len(self.bias)), indices, weight)], self.bias)
        return Level(clusters, self.of.astype(np.int32), self.share.astype(np.float32))


def named(levels: Sequence[StoredLevel]) -> dict[str, np.ndarray]:
    """All arrays by the names that ``levels_of`` reads."""
    return {f"head.clusters_{i}_{part}": getattr(level, part) for i, level in enumerate(levels) for part in PARTS}


def levels_of(weights: Mapping[str, np.ndarray]) -> list[StoredLevel]:
    """Raises:
    ValueError: an array of a level is missing.
    """
    levels: list[StoredLevel] = []
    while f"head.clusters_{len(levels)}_of" in weights:
        names = [f"head.clusters_{len(levels)}_{part}" for part in PARTS]
        missing = [name for name in names if name not in weights]
        if missing:
            raise ValueError(f"weights of a direct run lack {missing[0]}")
        levels.append(StoredLevel(*(weights[name] for name in names)))
    return levels


def matrix_of(blocks: Sequence[tuple[np.ndarray, np.ndarray]], in_features: int) -> sp.csr_matrix:
    """Indices and weights of consecutive labels or clusters as one matrix, float32."""
    sizes = np.concatenate([np.full(len(indices), indices.shape[1]) for indices, _ in blocks])
    columns = np.concatenate([indices.ravel() for indices, _ in blocks]).astype(np.int64)
    values = np.concatenate([weight.ravel() for _, weight in blocks]).astype(np.float32)
    matrix = sp.csr_matrix((values, columns, np.concatenate([[0], np.cumsum(sizes)])), (len(sizes), in_features))
    matrix.sort_indices()
    return matrix
