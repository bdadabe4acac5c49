"""How a sparse matrix is put together from its parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def csr_matrix(crow: Tensor, col: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """``torch.sparse_csr_tensor`` of parts that were checked, on their device whatever the default device is."""
    return torch.sparse_csr_tensor(crow, col, values, tuple(shape), device=crow.device, check_invariants=False)
