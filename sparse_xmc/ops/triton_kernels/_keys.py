"""Sortable keys of scored labels: an int64 that holds the float32 score as an integer of the same order, above the complement
of the label. Greater keys are better scores or, at equal scores, smaller labels; no two are equal."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops.triton_kernels._launch import Launch, Plans, cdiv, ready
from sparse_xmc.ops.triton_kernels._rounding import round_nearest

_BLOCK = 512
_PLANS = Plans()
LOWEST = tl.constexpr(-(1 << 63))


@triton.jit
def pack(score, label):
    """Keys of scores and labels, which are broadcast; nan counts as the greatest score, -0 as 0."""
    score = tl.where(score != score, float("nan"), score + 0.0)
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0xFFFFFFFF - label.to(tl.int64))


@triton.jit(do_not_specialize=["number"])
def unpack_kernel(keys_ptr, scores_ptr, labels_ptr, number, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < number
    keys = tl.load(keys_ptr + place, mask=mask, other=0)  # [BLOCK]
    ordered = (keys >> 32).to(tl.int32)
    score = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    tl.store(scores_ptr + place, round_nearest(score, scores_ptr.dtype.element_ty), mask=mask)
    tl.store(labels_ptr + place, 0xFFFFFFFF - (keys & 0xFFFFFFFF), mask=mask)


def unpack(keys: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(scores in ``dtype``, labels int64) of keys that are contiguous."""
    scores, labels = torch.empty(keys.shape, dtype=dtype, device=keys.device), torch.empty_like(keys)
    number = keys.numel()
    key = (number, dtype, keys.device)
    launch = _PLANS.get(key)
    if launch is None:
        launch = _PLANS.keep(key, Launch(unpack_kernel, (cdiv(number, _BLOCK),), BLOCK=_BLOCK, num_warps=4))
    if number:
        launch(ready(keys), keys, scores, labels, number)
    return scores, labels
