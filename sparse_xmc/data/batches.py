"""Rows of a data set as the tensors that an encoder takes, and targets as ``torch.sparse_csr``."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import scipy.sparse as sp

from sparse_xmc.data.checked import canonical_csr
from sparse_xmc.data.tokens import TokenRows

if TYPE_CHECKING:
    from torch import Tensor

    from sparse_xmc.ops._contract import Positives


class Inputs(Protocol):
    """Rows that a model can be fed with.

    Examples:
        >>> import numpy as np
        >>> from sparse_xmc.data import DenseInputs, Inputs
        >>> rows: Inputs = DenseInputs(np.eye(4, dtype=np.float32))
        >>> rows.batch(np.array([3]))
        tensor([[0., 0., 0., 1.]])
    """

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> Any:
        """The encoder's input for these rows."""


@cache
def _meet_beta_notice() -> None:
    """torch says once a process that its CSR layout is in beta: here, where nobody has to read it."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), check_invariants=False, device="cpu")


def to_torch_csr(matrix: sp.csr_matrix) -> Tensor:
    """A scipy CSR matrix as ``torch.sparse_csr`` with int64 indices.

    Examples:
        >>> import scipy.sparse as sp
        >>> from sparse_xmc.data import to_torch_csr
        >>> to_torch_csr(sp.csr_matrix([[0.0, 1.0], [1.0, 0.0]])).col_indices()
        tensor([1, 0])
    """
    import torch

    from sparse_xmc.ops._csr import csr_matrix

    _meet_beta_notice()
    offsets, columns = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    return csr_matrix(offsets, columns, torch.from_numpy(np.ascontiguousarray(matrix.data)), matrix.shape)


def sorted_targets(matrix: sp.csr_matrix) -> Positives:
    """A SciPy CSR matrix of labels, ordered by label as the fused losses read it: what a loss would else do in every step.

    Examples:
        >>> import scipy.sparse as sp
        >>> from sparse_xmc.data import sorted_targets
        >>> sorted_targets(sp.csr_matrix([[0.0, 1.0], [1.0, 1.0]])).labels
        tensor([0, 1, 1])
    """
    import torch

    from sparse_xmc.ops._contract import Positives

    rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    order = np.argsort(matrix.indices, kind="stable")
    labels, rows = matrix.indices[order].astype(np.int64), rows[order]
    again = (labels[1:] == labels[:-1]) & (rows[1:] == rows[:-1])
    rows[1:][again] = matrix.shape[0]  # a repeated entry counts once
    return Positives(torch.from_numpy(labels), torch.from_numpy(rows), *matrix.shape)


class SparseInputs:
    """Sparse features ``[N, D]``, checked in full; a batch is ``torch.sparse_csr [B, D]``.

    Examples:
        >>> import numpy as np, scipy.sparse as sp
        >>> from sparse_xmc.data import SparseInputs
        >>> SparseInputs(sp.eye(4, format="csr", dtype=np.float32)).batch(np.array([0, 2])).layout
        torch.sparse_csr
    """

    def __init__(self, matrix: sp.csr_matrix) -> None:
        self.matrix = canonical_csr(matrix, "the features", np.float32)

    def __len__(self) -> int:
        return self.matrix.shape[0]

    def batch(self, rows: np.ndarray) -> Tensor:
        return to_torch_csr(self.matrix[rows])


class DenseInputs:
    """Features ``[N, D]``, dense (possibly memory-mapped) or sparse; a batch is a dense float32 tensor ``[B, D]``.

    Examples:
        >>> import numpy as np
        >>> from sparse_xmc.data import DenseInputs
        >>> DenseInputs(np.eye(4, dtype=np.float32)).batch(np.array([0, 2])).shape
        torch.Size([2, 4])
    """

    def __init__(self, array: np.ndarray | sp.csr_matrix) -> None:
        self.array = canonical_csr(array, "the features", np.float32) if sp.issparse(array) else array

    def __len__(self) -> int:
        return self.array.shape[0]

    def batch(self, rows: np.ndarray) -> Tensor:
        import torch

        chosen = self.array[rows]
        return torch.from_numpy(np.asarray(chosen.toarray() if sp.issparse(chosen) else chosen, dtype=np.float32))


class TokenInputs:
    """Tokenised texts; a batch is padded to its longest row: ``input_ids`` and ``attention_mask [B, T]``.

    Examples:
        >>> import numpy as np
        >>> from sparse_xmc.data import TokenInputs, TokenRows
        >>> rows = TokenRows.from_texts(["a b", "c"], lambda texts: [[ord(w) for w in t.split()] for t in texts], 128)
        >>> TokenInputs(rows, pad_id=0).batch(np.array([0, 1]))["input_ids"]
        tensor([[97, 98],
                [99,  0]])
    """

    def __init__(self, cache: TokenRows, pad_id: int) -> None:
        self.cache, self.pad_id = cache, pad_id

    def __len__(self) -> int:
        return len(self.cache)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        import torch

        texts = [self.cache[int(row)] for row in rows]
        width = max([1, *map(len, texts)])
        ids = torch.full((len(texts), width), self.pad_id, dtype=torch.int64)
        mask = torch.zeros(len(texts), width, dtype=torch.int64)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = torch.from_numpy(text.astype(np.int64))
            mask[i, : len(text)] = 1
        return {"input_ids": ids, "attention_mask": mask}
