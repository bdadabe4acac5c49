"""A fixed fan-in head on sparse terms in blocks of labels, each block with its own number of connections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sparse_xmc.ops._arguments import check_input, index_dtype, validate_indices
from sparse_xmc.solver.head import Block, InvertedIndex, TermHead


class TermBlocks(nn.Module):
    """Scores ``[B, L]`` of ``torch.sparse_csr`` rows ``[B, D]``, for prediction only.

    Block i holds the next ``sizes[i][0]`` labels with ``sizes[i][1]`` connections each. Weights are float16. ``topk``
    scores through an inverted index, which is made at the first call: exact, and never ``[B, L]``.

    Raises:
        ValueError: a block is empty or has no or more connections than there are features.
    """

    def __init__(self, in_features: int, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        for labels, fan_in in sizes:
            if labels < 1 or not 1 <= fan_in <= in_features:
                raise ValueError(
                    f"a block needs labels, and 1 to {in_features} connections of each, got {labels} labels of {fan_in}"
                )
        self.in_features, self.sizes = in_features, [tuple(size) for size in sizes]
        self.out_features = sum(labels for labels, _ in sizes)
        for i, shape in enumerate(self.sizes):
            self.register_buffer(f"indices_{i}", torch.zeros(shape, dtype=index_dtype(in_features)))
            self.register_buffer(f"weight_{i}", torch.zeros(shape, dtype=torch.float16))
        self.register_buffer("bias", torch.zeros(self.out_features))
        self._index: InvertedIndex | None = None

    @classmethod
    def from_solution(cls, head: TermHead, in_features: int) -> TermBlocks:
        """Of a solved head, whose blocks hold consecutive labels."""
        blocks = sorted((block for block in head.blocks if len(block.labels)), key=lambda block: int(block.labels[0]))
        result = cls(in_features, [block.indices.shape for block in blocks])
        start = 0
        for i, block in enumerate(blocks):
            if not np.array_equal(block.labels, np.arange(start, start + len(block.labels))):
                raise ValueError("the blocks of a head must hold consecutive labels")
            start += len(block.labels)
            result._of("indices", i).copy_(torch.from_numpy(block.indices.astype(np.int64)))
            result._of("weight", i).copy_(torch.from_numpy(block.weight))
        result.get_buffer("bias").copy_(torch.from_numpy(head.bias))
        return result

    def _of(self, kind: str, i: int) -> Tensor:
        return self.get_buffer(f"{kind}_{i}")

    def validate(self) -> None:
        """Raises:
        ValueError: an index is out of range or stands twice in a row.
        """
        for i in range(len(self.sizes)):
            validate_indices(self._of("indices", i), self.in_features)

    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.buffers())

    def inverted(self) -> InvertedIndex:
        """The inverted index, made once."""
        if self._index is None:
            self._index = self.solution().invert(self.in_features)
        return self._index

    def solution(self) -> TermHead:
        """The head as arrays, of which ``from_solution`` makes an equal one."""
        blocks, start = [], 0
        for i, (count, _) in enumerate(self.sizes):
            indices = self._of("indices", i).to(torch.int32).cpu().numpy()
            weight = self._of("weight", i).float().cpu().numpy()
            blocks.append(Block(np.arange(start, start + count), indices, weight))
            start += count
        return TermHead(blocks, self.get_buffer("bias").cpu().numpy())

    def forward(self, x: Tensor) -> Tensor:
        """Scores of all labels ``[B, L]``."""
        import scipy.sparse as sp

        index = self.inverted()
        by_term = sp.csr_matrix((index.weights, index.labels, index.term_ptr), (self.in_features, self.out_features))
        return torch.from_numpy((_rows(x, self.in_features) @ by_term).toarray() + index.bias)

    def topk(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """``(scores, labels) [B, k]``, best first, ties by the smaller label."""
        scores, labels = self.inverted().topk(_rows(x, self.in_features), k)
        return torch.from_numpy(scores), torch.from_numpy(labels).long()


def _rows(x: Tensor, in_features: int) -> "sp.csr_matrix":  # type: ignore[name-defined]  # noqa: F821, UP037
    import scipy.sparse as sp

    check_input(x, in_features)
    parts = (x.values().float().cpu().numpy(), x.col_indices().cpu().numpy(), x.crow_indices().cpu().numpy())
    return sp.csr_matrix(parts, tuple(x.shape))
