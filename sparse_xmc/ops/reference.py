"""The ops in eager torch: their definition, in a few lines each and without a ``[B, L, K]`` tensor.

Differentiable by torch's own autograd, on any device. Slow on purpose-built scales: for reading and for tests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype


def expand_groups(indices: Tensor, out_features: int, group_size: int) -> Tensor:
    """Indices of every label as int64 ``[L, K]``."""
    return indices.long().repeat_interleave(group_size, dim=0)[:out_features]


def fixed_fan_in_linear(
    x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None = None, *, group_size: int = 1
) -> Tensor:
    """``y[..., l] = bias[l] + sum_k weight[l, k] * x[..., indices[l // G, k]]``: an embedding bag of ``x`` transposed."""
    acc = compute_dtype(weight.dtype)
    table = x.reshape(-1, x.shape[-1]).t().to(acc)
    bags = expand_groups(indices, weight.shape[0], group_size)
    y = F.embedding_bag(bags, table, per_sample_weights=weight.to(acc), mode="sum").t()
    if bias is not None:
        y = y + bias.to(acc)
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])
