"""What launchers share: the device guard and the padded feature-major copy of an input."""

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor

# rows of a feature-major matrix start at multiples of this, so that any 16-byte load of a row is aligned and unmasked
ROW_ALIGNMENT = 16


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Makes the tensor's GPU the current one: Triton launches on the current device, not on its arguments'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def padded(size: int) -> int:
    """``size`` rounded up to the row alignment."""
    return -(-size // ROW_ALIGNMENT) * ROW_ALIGNMENT


def feature_major(x: Tensor) -> Tensor:
    """``x [B, D] -> [D, padded(B)]`` contiguous, zeros in the padding: a gathered feature is one contiguous row."""
    B, D = x.shape
    out = torch.empty(D, padded(B), dtype=x.dtype, device=x.device)
    out[:, :B].copy_(x.t())
    out[:, B:].zero_()
    return out


def batch_major(sums: Tensor, num_rows: int, dtype: torch.dtype) -> Tensor:
    """``sums [D, >= B] -> [B, D]`` contiguous in ``dtype``: the way back of ``feature_major``, rounding once."""
    out = torch.empty(num_rows, sums.shape[0], dtype=dtype, device=sums.device)
    return out.copy_(sums[:, :num_rows].t())
