"""The model of a direct run: sparse terms straight into blocks of fixed fan-in, on NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparse_xmc.app.direct.checks import check_array, check_block, index_type
from sparse_xmc.app.direct.stored_levels import StoredLevel, levels_of, matrix_of, named
from sparse_xmc.data import Inputs, SparseInputs
from sparse_xmc.solver.head import Block, InvertedIndex, TermHead

_PIECE = 1 << 15  # labels whose weights are widened at once


class TermModel:
    """Scores sparse rows ``[B, D]``, as log-odds, for prediction only.

    Labels stand in consecutive blocks, each with its own number of connections. Weights are float16, indices 16-bit where
    there are few enough terms. The best labels come from an inverted index, which is made at its first use: exact, and
    never ``[B, L]``.

    Args:
        blocks: ``(indices, weight)``, both ``[n, K]``, of the next n labels each.
        bias: ``[L]``, float32.
        levels: clusters of labels in front of the head.

    Raises:
        ValueError: shapes or dtypes differ from these, or an index is out of range or stands twice in its row.
    """

    def __init__(
        self,
        in_features: int,
        blocks: Sequence[tuple[np.ndarray, np.ndarray]],
        bias: np.ndarray,
        levels: Sequence[StoredLevel] = (),
    ) -> None:
        for i, (indices, weight) in enumerate(blocks):
            check_block(f"indices_{i}", indices, f"weight_{i}", weight, in_features)
        check_array("bias", bias, np.float32, (None,))
        if sum(len(indices) for indices, _ in blocks) != len(bias):
            raise ValueError(f"the blocks hold {sum(len(i) for i, _ in blocks)} labels, the bias {len(bias)}")
        for i, level in enumerate(levels):
            level.check(i, in_features, len(bias))
        self.in_features, self.blocks, self.bias, self.levels = in_features, list(blocks), bias, list(levels)
        self._index: InvertedIndex | None = None

    @classmethod
    def from_solution(cls, head: TermHead, in_features: int) -> TermModel:
        """Of a solved head, whose blocks hold consecutive labels."""
        index = index_type(in_features)
        parts, start = [], 0
        for block in sorted((b for b in head.blocks if len(b.labels)), key=lambda b: int(b.labels[0])):
            if not np.array_equal(block.labels, np.arange(start, start + len(block.labels))):
                raise ValueError("the blocks of a head must hold consecutive labels")
            start += len(block.labels)
            parts.append((block.indices.astype(index, copy=False), block.weight.astype(np.float16)))
        levels = [StoredLevel.from_solution(level, index) for level in head.levels]
        return cls(in_features, parts, head.bias.astype(np.float32, copy=False), levels)

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
        levels = levels_of(weights)
        if any(array is None for array in arrays) or len(arrays) + len(named(levels)) != len(weights):
            raise ValueError(f"weights of a direct run are blocks, a bias and clusters, got {sorted(weights)!r:.200}")
        model = cls(in_features, blocks, weights["head.bias"], levels)
        if len(model.bias) != num_labels:
            raise ValueError(f"the head holds {len(model.bias)} labels, of {num_labels}")
        return model

    def state_dict(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        arrays = {"head.bias": self.bias}
        for i, (indices, weight) in enumerate(self.blocks):
            arrays |= {f"head.indices_{i}": indices, f"head.weight_{i}": weight}
        return arrays | named(self.levels)

    def head_bytes(self) -> int:
        return sum(array.nbytes for array in self.state_dict().values())

    def matrix(self) -> sp.csr_matrix:
        """The weights of all labels, float32 ``[L, D]``, without levels."""
        return matrix_of(self.blocks, self.in_features)

    def inverted(self) -> InvertedIndex:
        """The inverted index, made once."""
        if self._index is None:
            levels = [level.solution() for level in self.levels]
            self._index = TermHead(_Pieces(self.blocks), self.bias, levels).invert(self.in_features)
        return self._index

    def solution(self) -> TermHead:
        """The head as the solver has it, of which ``from_solution`` makes an equal one."""
        blocks, start = [], 0
        for indices, weight in self.blocks:
            labels = np.arange(start, start + len(indices))
            blocks.append(Block(labels, indices.astype(np.int32, copy=False), weight.astype(np.float32)))
            start += len(indices)
        return TermHead(blocks, self.bias, [level.solution() for level in self.levels])

    def topk(self, inputs: Inputs, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """``(scores, labels) [b, k]`` of these rows, best first, ties by the smaller label."""
        scores, labels = self.inverted().topk(_sparse(inputs)[rows], k)
        return scores, labels.astype(np.int64)

    def scores(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray:
        """Scores of all labels ``[b, L]``."""
        index = self.inverted()
        by_term = sp.csr_matrix((index.weights, index.labels, index.term_ptr), (self.in_features, len(self.bias)))
        x = _sparse(inputs)[rows]
        scores = (x @ by_term).toarray() + self.bias
        for level in self.levels:
            solved = level.solution()
            scores += solved.share * solved.log_likelihoods(x)[:, solved.of]
        return scores

    def estimates(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities that scores stand for, as training left them."""
        return np.exp(-np.logaddexp(np.float32(0), -scores))


class _Pieces(Sequence[Block]):
    """Stored blocks as the solver has them, some labels at a time: all of them at once are as large as the model."""

    def __init__(self, blocks: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self._parts, first = [], 0
        for indices, weight in blocks:
            for start in range(0, len(indices), _PIECE):
                part = slice(start, start + _PIECE)
                self._parts.append((first + start, indices[part], weight[part]))
            first += len(indices)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: Any) -> Any:
        first, indices, weight = self._parts[number]
        labels = np.arange(first, first + len(indices))
        return Block(labels, indices.astype(np.int32, copy=False), weight.astype(np.float32))


def _sparse(inputs: Inputs) -> sp.csr_matrix:
    assert isinstance(inputs, SparseInputs)
    return inputs.matrix
