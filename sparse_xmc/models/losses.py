"""Multi-label losses of a logit matrix that exists anyway (dense heads, sums of heads)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse_xmc.ops._arguments import Targets
from sparse_xmc.ops._contract import Objective
from sparse_xmc.ops._objective import divisor, objective
from sparse_xmc.ops._targets import sorted_positives


def logits_loss(
    logits: Tensor, targets: Targets, *, loss: str = "bce", reduction: str = "mean", **options: Any
) -> Tensor:
    """A multi-label loss of ``logits [..., L]``; targets, losses, reductions and options (weights of labels and rows, those
    of the asymmetric loss) as in ``ops.fixed_fan_in_loss``. A label that stands twice in a row counts once."""
    L = logits.shape[-1]
    logits = logits.reshape(-1, L)
    B = len(logits)
    goal = objective(loss, options, B, logits.detach().T)
    divided = divisor(reduction, B, L)
    positives = sorted_positives(targets, B, L, logits.device)
    if positives.labels.device != logits.device:
        raise ValueError(f"targets must be on the weight's device {logits.device}, got {positives.labels.device}")
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    counted = positives.counted()
    label, row = (torch.where(counted, part, 0) for part in positives[:2])
    positive = logits[row, label]
    gained = _positive_terms(positive, goal)
    if goal.pos_weight is not None:
        gained = gained * goal.pos_weight[label]
    moved = torch.where(counted, gained - _negative_terms(positive, goal), 0)
    terms = _negative_terms(logits, goal)
    if goal.sample_weight is not None:
        moved, terms = moved * goal.sample_weight[row], terms * goal.sample_weight[:, None]
    return (terms.sum() + moved.sum()) / divided


def _positive_terms(z: Tensor, goal: Objective) -> Tensor:
    if goal.loss == "squared_hinge":
        return (1 - z).clamp(min=0).square()
    terms = F.softplus(-z)
    return terms * torch.sigmoid(-z) ** goal.gamma_pos if goal.gamma_pos else terms


def _negative_terms(z: Tensor, goal: Objective) -> Tensor:
    if goal.loss == "squared_hinge":
        return (1 + z).clamp(min=0).square()
    if goal.loss == "bce":
        return F.softplus(z)
    q, rest = torch.sigmoid(z) - goal.clip, torch.sigmoid(-z) + goal.clip  # they add up to 1
    counts = q > 0
    q = torch.where(counts, q, 0.5)  # its powers have a derivative everywhere
    value = torch.where(q < 0.5, -torch.log1p(-q.clamp(max=0.5)), -torch.log(torch.where(counts, rest, 0.5)))
    if goal.clip == 0:
        value = F.softplus(z)
    return torch.where(counts, q**goal.gamma_neg * value, 0)
