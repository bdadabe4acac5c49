"""Multi-label losses of a logit matrix that exists anyway (dense heads, sums of heads)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_xmc.ops._arguments import Targets
from sparse_xmc.ops._target_forms import csr_tensor
from sparse_xmc.ops._targets import sorted_positives


def logits_loss(logits: Tensor, targets: Targets, *, loss: str = "bce", reduction: str = "mean") -> Tensor:
    """``"bce"`` or ``"squared_hinge"`` of ``logits [..., L]`` against targets as ``ops.fixed_fan_in_loss`` takes them.

    ``reduction="sum"`` adds over rows and labels, ``"mean"`` divides that by the number of rows; a label that stands
    twice in a row counts once.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    L = logits.shape[-1]
    logits = logits.reshape(-1, L)
    B = len(logits)
    positives = sorted_positives(csr_tensor(targets, B, L, logits.device), B, L)
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    first = positives.rows < B  # a repeated label stands in row B
    positive = logits[positives.rows.clamp(max=max(0, B - 1)), positives.labels]
    if loss == "bce":
        total = F.softplus(logits).sum() - (positive * first).sum()
    elif loss == "squared_hinge":
        total = (1 + logits).clamp(min=0).square().sum()
        moved = (1 - positive).clamp(min=0).square() - (1 + positive).clamp(min=0).square()
        total = total + (moved * first).sum()
    else:
        raise ValueError(f"loss must be 'bce' or 'squared_hinge', got {loss!r}")
    return total / B if reduction == "mean" and B else total
