"""Products with sparse rows whose weight gradient touches only the columns that occur."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_xmc.ops._backend import cpu_kernels
from sparse_xmc.ops._csr import csr_matrix


class _EmbeddingBagCSR(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, crow: Tensor, col: Tensor, values: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(crow, col, values)
        ctx.weight_shape = weight.shape
        x = csr_matrix(crow, col, values, (len(crow) - 1, weight.shape[0]))
        return torch.sparse.mm(x, weight)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, None, None, Tensor | None]:
        crow, col, values = ctx.saved_tensors
        if not ctx.needs_input_grad[3]:
            return None, None, None, None
        order = torch.argsort(col, stable=True)
        touched, counts = torch.unique_consecutive(col[order], return_counts=True)
        rows = torch.repeat_interleave(torch.arange(len(crow) - 1, device=col.device), crow.diff())
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        x_t = csr_matrix(offsets, rows[order], values[order], (len(touched), len(crow) - 1))
        gradient = torch.sparse.mm(x_t, dy.contiguous())
        dense_shape = tuple(ctx.weight_shape)
        table = torch.sparse_coo_tensor(
            touched[None], gradient, dense_shape, device=col.device, is_coalesced=True, check_invariants=False
        )
        return None, None, None, table


def check_rows(x: Tensor) -> None:
    """On a CPU, where nobody else looks at the structure of a ``torch.sparse_csr`` matrix before it is followed.

    Raises:
        ValueError: row offsets do not ascend from 0 to the number of entries, or a column is out of range.
    """
    if x.layout == torch.sparse_csr and x.device.type == "cpu" and not torch.compiler.is_compiling():
        crow, col = x.crow_indices(), x.col_indices()
        cpu_kernels("_csr").check_csr(crow.numpy(), col.numpy(), x.shape[1], "x", "column")


def embedding_bag_csr(x: Tensor, weight: Tensor) -> Tensor:
    """``x [B, V]`` (``torch.sparse_csr``) times ``weight [V, D]`` -> ``[B, D]``.

    The gradient of ``weight`` is a coalesced sparse COO tensor whose rows are the columns that occur in ``x``; ``x``
    gets none. ``F.embedding_bag(sparse=True)`` computes the same with one gradient row per nonzero of ``x``.

    Raises:
        ValueError: the structure of ``x`` on a CPU is none of such a matrix.
    """
    check_rows(x)
    values = x.values().to(weight.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _EmbeddingBagCSR.apply(x.crow_indices(), x.col_indices(), values, weight)


def csr_columns(x: Tensor, start: int, stop: int) -> Tensor:
    """Columns ``[start, stop)`` of a ``torch.sparse_csr`` matrix, numbered from 0."""
    columns = x.col_indices()
    kept = (columns >= start) & (columns < stop)
    ends = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    shape = (x.shape[0], stop - start)
    return csr_matrix(ends[x.crow_indices()], columns[kept] - start, x.values()[kept], shape)


def csr_rows(x: Tensor, start: int, stop: int) -> Tensor:
    """Rows ``[start, stop)`` of a ``torch.sparse_csr`` matrix."""
    crow = x.crow_indices()[start : stop + 1]
    low, high = int(crow[0]), int(crow[-1])
    shape = (len(crow) - 1, x.shape[1])
    return csr_matrix(crow - low, x.col_indices()[low:high], x.values()[low:high], shape)
