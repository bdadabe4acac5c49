"""Sortable keys of scored labels: an int64 that holds the float32 score as an integer of the same order, above the complement
of the label. Greater keys are better scores or, at equal scores, smaller labels; no two are equal."""

import torch
import triton
import triton.language as tl
from torch import Tensor

LOWEST = tl.constexpr(-(1 << 63))


@triton.jit
def pack(score, label):
    """Keys of scores and labels, which are broadcast; nan counts as the greatest score, -0 as 0."""
    score = tl.where(score != score, float("nan"), score + 0.0)
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - label.to(tl.int64))


def unpack(keys: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(scores in ``dtype``, labels int64) of keys."""
    ordered = keys >> 32
    bits = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(torch.int32)
    return bits.view(torch.float32).to(dtype), 0xFFFFFFFF - (keys & 0xFFFFFFFF)
