"""How a sparse matrix is put together from its parts."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor


@functools.cache
def _silence() -> None:
    """torch warns once in a process that CSR is in beta; where lists were given that would be about a detail, or an error
    under ``python -W error``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], (1, 1), dtype=torch.bool, device="cpu", check_invariants=False)


def csr_matrix(crow: Tensor, col: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    """``torch.sparse_csr_tensor`` of parts that were checked, on their device whatever the default device is."""
    if not torch.compiler.is_compiling():
        _silence()
    return torch.sparse_csr_tensor(crow, col, values, tuple(shape), device=crow.device, check_invariants=False)
