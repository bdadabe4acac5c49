"""Multi-label losses of a logit matrix that exists anyway (dense heads, sums of heads)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def logits_loss(logits: Tensor, targets: Tensor, *, loss: str = "bce", reduction: str = "mean") -> Tensor:
    """``"bce"`` or ``"squared_hinge"`` of ``logits [B, L]`` against a binary ``torch.sparse_csr`` target matrix.

    ``reduction="sum"`` adds over rows and labels, ``"mean"`` divides that by ``B``; the values of ``targets`` are
    ignored.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if tuple(targets.shape) != tuple(logits.shape):
        raise ValueError(f"targets must be {list(logits.shape)}, got {list(targets.shape)}")
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    crow = targets.crow_indices()
    rows = torch.repeat_interleave(torch.arange(len(crow) - 1, device=crow.device), crow.diff())
    positive = logits[rows, targets.col_indices().long()]
    if loss == "bce":
        total = F.softplus(logits).sum() - positive.sum()
    elif loss == "squared_hinge":
        total = (1 + logits).clamp(min=0).square().sum()
        total = total + ((1 - positive).clamp(min=0).square() - (1 + positive).clamp(min=0).square()).sum()
    else:
        raise ValueError(f"loss must be 'bce' or 'squared_hinge', got {loss!r}")
    return total / len(logits) if reduction == "mean" and len(logits) else total
