"""The model of a direct run: sparse terms straight into blocks of fixed fan-in, on NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data import Inputs, SparseInputs
from sparse_xmc.solver.head import Block, InvertedIndex, TermHead

_NARROW = 1 << 16  # terms that a 16-bit index tells apart
_CHECKED = 1 << 16  # rows of indices looked at at a time


class TermModel:
    """Scores sparse rows ``[B, D]``, as log-odds, for prediction only.

    Labels stand in consecutive blocks, each with its own number of connections. Weights are float16, indices 16-bit where
    there are few enough terms. The best labels come from an inverted index, which is made at its first use: exact, and
    never ``[B, L]``.

    Args:
        blocks: ``(indices, weight)``, both ``[n, K]``, of the next n labels each.
        bias: ``[L]``, float32.

    Raises:
        ValueError: shapes or dtypes differ from these, or an index is out of range or stands twice in its row.
    """

    def __init__(self, in_features: int, blocks: Sequence[tuple[np.ndarray, np.ndarray]], bias: np.ndarray) -> None:
        index = np.uint16 if in_features <= _NARROW else np.int32
        for i, (indices, weight) in enumerate(blocks):
            _check(f"indices_{i}", indices, index, 2)
            _check(f"weight_{i}", weight, np.float16, 2)
            if weight.shape != indices.shape or not 1 <= indices.shape[1] <= in_features or not len(indices):
                raise ValueError(
                    f"a block needs labels, and 1 to {in_features} connections of each, got indices "
                    f"{list(indices.shape)} and weights {list(weight.shape)}"
                )
            _check_distinct(f"indices_{i}", indices, in_features)
        _check("bias", bias, np.float32, 1)
        if sum(len(indices) for indices, _ in blocks) != len(bias):
            raise ValueError(f"the blocks hold {sum(len(i) for i, _ in blocks)} labels, the bias {len(bias)}")
        self.in_features, self.blocks, self.bias = in_features, list(blocks), bias
        self._index: InvertedIndex | None = None

    @classmethod
    def from_solution(cls, head: TermHead, in_features: int) -> TermModel:
        """Of a solved head, whose blocks hold consecutive labels."""
        index = np.uint16 if in_features <= _NARROW else np.int32
        parts, start = [], 0
        for block in sorted((b for b in head.blocks if len(b.labels)), key=lambda b: int(b.labels[0])):
            if not np.array_equal(block.labels, np.arange(start, start + len(block.labels))):
                raise ValueError("the blocks of a head must hold consecutive labels")
            start += len(block.labels)
            parts.append((block.indices.astype(index, copy=False), block.weight.astype(np.float16)))
        return cls(in_features, parts, head.bias.astype(np.float32, copy=False))

    @classmethod
    def from_weights(cls, in_features: int, num_labels: int, weights: Mapping[str, np.ndarray]) -> TermModel:
        """Of what ``state_dict`` returned.

        Raises:
            ValueError: they are of no such model, or not of so many labels.
        """
        blocks: list[Any] = []
        while f"head.indices_{len(blocks)}" in weights:
            blocks.append(tuple(weights.get(f"head.{kind}_{len(blocks)}") for kind in ("indices", "weight")))
        arrays = [array for block in blocks for array in block] + [weights.get("head.bias")]
        if any(array is None for array in arrays) or len(arrays) != len(weights):
            raise ValueError(f"weights of a direct run are blocks and a bias, got {sorted(weights)!r:.200}")
        model = cls(in_features, blocks, weights["head.bias"])
        if len(model.bias) != num_labels:
            raise ValueError(f"the head holds {len(model.bias)} labels, of {num_labels}")
        return model

    def state_dict(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        named = {"head.bias": self.bias}
        for i, (indices, weight) in enumerate(self.blocks):
            named |= {f"head.indices_{i}": indices, f"head.weight_{i}": weight}
        return named

    def head_bytes(self) -> int:
        return sum(array.nbytes for array in self.state_dict().values())

    def matrix(self) -> sp.csr_matrix:
        """The weights of all labels, float32 ``[L, D]``."""
        sizes = np.concatenate([np.full(len(indices), indices.shape[1]) for indices, _ in self.blocks])
        columns = np.concatenate([indices.ravel() for indices, _ in self.blocks]).astype(np.int64)
        values = np.concatenate([weight.ravel() for _, weight in self.blocks]).astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        matrix = sp.csr_matrix((values, columns, offsets), (len(self.bias), self.in_features))
        matrix.sort_indices()
        return matrix

    def inverted(self) -> InvertedIndex:
        """The inverted index, made once."""
        if self._index is None:
            self._index = self.solution().invert(self.in_features)
        return self._index

    def solution(self) -> TermHead:
        """The head as the solver has it, of which ``from_solution`` makes an equal one."""
        blocks, start = [], 0
        for indices, weight in self.blocks:
            labels = np.arange(start, start + len(indices))
            blocks.append(Block(labels, indices.astype(np.int32, copy=False), weight.astype(np.float32)))
            start += len(indices)
        return TermHead(blocks, self.bias)

    def topk(self, inputs: Inputs, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """``(scores, labels) [b, k]`` of these rows, best first, ties by the smaller label."""
        scores, labels = self.inverted().topk(_sparse(inputs)[rows], k)
        return scores, labels.astype(np.int64)

    def scores(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray:
        """Scores of all labels ``[b, L]``."""
        index = self.inverted()
        by_term = sp.csr_matrix((index.weights, index.labels, index.term_ptr), (self.in_features, len(self.bias)))
        return (_sparse(inputs)[rows] @ by_term).toarray() + self.bias

    def estimates(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities that scores stand for, as training left them."""
        return np.exp(-np.logaddexp(np.float32(0), -scores))


def _sparse(inputs: Inputs) -> sp.csr_matrix:
    assert isinstance(inputs, SparseInputs)
    return inputs.matrix


def _check(name: str, array: Any, dtype: Any, dimensions: int) -> None:
    if array.dtype != dtype or array.ndim != dimensions:
        raise ValueError(f"{name} must be {np.dtype(dtype)} of {dimensions} dimensions, is {array.dtype} {array.shape}")


def _check_distinct(name: str, indices: np.ndarray, in_features: int) -> None:
    for start in range(0, len(indices), _CHECKED):
        rows = np.sort(indices[start : start + _CHECKED], axis=1)
        bad = (rows[:, 0] < 0) | (rows[:, -1] >= in_features)
        if bad.any():
            row = rows[int(np.argmax(bad))]
            value = row[0] if row[0] < 0 else row[-1]
            raise ValueError(f"{name}[{start + int(np.argmax(bad))}] holds {value}, outside [0, {in_features})")
        twice = rows[:, 1:] == rows[:, :-1]
        if twice.any():
            at, slot = (int(found[0]) for found in np.nonzero(twice))
            raise ValueError(f"{name}[{start + at}] holds {rows[at, slot]} twice: the indices of a row are distinct")
