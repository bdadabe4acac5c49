"""Heads of torch models as SciPy's matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from sparse_xmc.models.head_tail import DenseLinear, HeadTailLinear
from sparse_xmc.models.linear import FixedFanInLinear


def _parts(head: nn.Module) -> list[Any]:
    return [head.head, head.tail] if isinstance(head, HeadTailLinear) else [head]


@torch.no_grad()
def matrix_of(head: nn.Module) -> sp.csr_matrix:
    """The weights of all labels, float32 ``[L, D]``."""
    return sp.vstack([_part_matrix(part) for part in _parts(head)], format="csr", dtype=np.float32)


def _part_matrix(part: Any) -> sp.csr_matrix:
    if isinstance(part, DenseLinear):
        return sp.csr_matrix(part.weight.float().numpy())
    assert isinstance(part, FixedFanInLinear)
    weight = part.weight.float().numpy()
    columns = np.repeat(part.indices.to(torch.int64).numpy(), part.group_size, axis=0)[: len(weight)]
    offsets = np.arange(len(weight) + 1, dtype=np.int64) * weight.shape[1]
    matrix = sp.csr_matrix((weight.ravel(), columns.ravel(), offsets), shape=(len(weight), part.in_features))
    matrix.sort_indices()
    return matrix


@torch.no_grad()
def bias_of(head: nn.Module) -> np.ndarray:
    """The biases ``[L]``."""
    return np.concatenate([part.bias.float().numpy() for part in _parts(head)])
