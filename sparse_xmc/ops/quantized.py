"""8-bit weights: float8 e4m3 numbers times one scale per label, for inference.

A scale is a power of two, the smallest that keeps the label's largest weight within e4m3's 448. So a dequantised weight
has 4 significant bits, is exact in bfloat16 and float32, and comes back unchanged when it is quantised again. Weights
below ``2^-14`` of the label's largest lose bits; others are off by at most ``2^-4`` of themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import QUANTIZED_DTYPE, check_float, check_weight_scale

_SMALLEST_EXPONENT = -126  # of a float32 that is not subnormal
_LARGEST = 1.875 * 2.0**127  # with 4 significant bits
_BLOCK = 1 << 22  # weights that are converted at a time


@torch.no_grad()
def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds ``weight [L, K]`` to nearest even float8 e4m3, each label on a scale of its own.

    Returns:
        ``(quantized [L, K] float8_e4m3fn, weight_scale [L] float32)``; ``quantized * weight_scale`` approximates ``weight``.

    Raises:
        TypeError: ``weight`` is not a float tensor.
        ValueError: it is not 2-D, or holds inf, NaN or numbers beyond float32. Waits for the device.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> weight = torch.randn(100, 8)
        >>> quantized, scale = ops.quantize_weight(weight)
        >>> quantized.dtype, scale.shape
        (torch.float8_e4m3fn, torch.Size([100]))
        >>> bool(((ops.dequantize_weight(quantized, scale) - weight).abs() <= weight.abs().amax(1, keepdim=True) / 16).all())
        True
    """
    check_float("weight", weight)
    if weight.ndim != 2:
        raise ValueError(f"weight must be [out_features, fan_in], got shape {list(weight.shape)}")
    quantized = torch.empty(weight.shape, dtype=QUANTIZED_DTYPE, device=weight.device)
    scale = torch.empty(weight.shape[0], dtype=torch.float32, device=weight.device)
    block = max(1, _BLOCK // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], block):
        rows = weight[start : start + block].float()
        finite = rows.isfinite().all(1)
        if not bool(finite.all()):
            label = start + int((~finite).nonzero()[0])
            raise ValueError(f"weight must be finite in float32 to be quantized, but that of label {label} is not")
        rows = rows.clamp(-_LARGEST, _LARGEST)
        largest = rows.abs().amax(1)
        mantissa, exponent = torch.frexp(largest)  # largest = mantissa * 2^exponent; 448 = 0.875 * 2^9
        exponent = (exponent - 9 + (mantissa > 0.875).int()).clamp(min=_SMALLEST_EXPONENT)
        part = torch.ldexp(torch.ones_like(largest), exponent.masked_fill(largest == 0, 0))
        scale[start : start + block] = part
        quantized[start : start + block] = (rows / part[:, None]).to(QUANTIZED_DTYPE)
    return quantized, scale


@torch.no_grad()
def dequantize_weight(quantized: Tensor, weight_scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights ``[L, K]`` that ``quantized`` and its scales stand for, in ``dtype``.

    Raises:
        ValueError, TypeError: an argument has the wrong shape, dtype or device.

    Examples:
        >>> import torch
        >>> from sparse_xmc import ops
        >>> weight = torch.tensor([[0.5, -1.0], [2.0, 4.0]])
        >>> ops.dequantize_weight(*ops.quantize_weight(weight))
        tensor([[ 0.5000, -1.0000],
                [ 2.0000,  4.0000]])
    """
    check_weight_scale(quantized, weight_scale)
    weight = torch.empty(quantized.shape, dtype=dtype, device=quantized.device)
    block = max(1, _BLOCK // max(1, quantized.shape[1]))
    for start in range(0, quantized.shape[0], block):
        rows = slice(start, start + block)
        weight[rows] = quantized[rows].float() * weight_scale[rows, None]
    return weight
