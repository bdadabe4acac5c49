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


def fixed_fan_in_loss(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    loss: str = "bce",
    reduction: str = "mean",
    group_size: int = 1,
) -> Tensor:
    """The multi-label loss by its formula; materialises logits and targets ``[B, L]``, unlike the op."""
    acc = compute_dtype(weight.dtype)
    z = fixed_fan_in_linear(x.reshape(-1, x.shape[-1]).to(acc), weight, indices, bias, group_size=group_size)
    crow, labels = targets.crow_indices().long(), targets.col_indices().long()
    rows = torch.repeat_interleave(torch.arange(z.shape[0], device=z.device), crow.diff())
    positive = torch.zeros(z.shape, dtype=torch.bool, device=z.device).index_put_((rows, labels), rows >= 0)
    signed = torch.where(positive, -z, z)
    total = F.softplus(signed).sum() if loss == "bce" else (1 + signed).clamp(min=0).square().sum()
    return total / max(1, z.shape[0]) if reduction == "mean" else total
