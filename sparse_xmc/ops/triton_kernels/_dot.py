"""Matrix products of the linear kernels: which dtype the operands take, and how float64 and wider weights are handled.

Triton's interpreter multiplies raw bfloat16 wrongly, so there operands are rounded to the dtype and widened again.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from sparse_xmc.ops._arguments import QUANTIZED_DTYPE
from sparse_xmc.ops.triton_kernels._rounding import INTERPRETED, round_nearest

TRITON_DTYPES = {
    torch.float64: tl.float64,
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}


@triton.jit
def _operand(value, dtype: tl.constexpr):
    if INTERPRETED:
        out = round_nearest(value.to(tl.float32), dtype).to(tl.float32)
    else:
        out = value.to(dtype)
    return out


@triton.jit
def dot(a, b, acc, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + a @ b`` with operands rounded to ``dtype``.

    float64 (there for gradient checks) is multiplied and summed without ``tl.dot``, which Triton 3.7 can't lower.
    """
    if dtype == tl.float64:
        out = acc + tl.sum(a.to(tl.float64)[:, :, None] * b.to(tl.float64)[None, :, :], axis=1)
    else:
        out = tl.dot(_operand(a, dtype), _operand(b, dtype), acc, input_precision=PRECISION)
    return out


@triton.jit
def dot_weight(a, weight, acc, dtype: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr):
    """``dot`` for a weight that may be wider than ``dtype``: SPLIT keeps 16 bits of it, as a sum of two bfloat16."""
    out = dot(a, weight, acc, dtype, PRECISION)
    if SPLIT:
        exact = weight.to(tl.float32)
        out = dot(a, exact - round_nearest(exact, dtype).to(tl.float32), out, dtype, PRECISION)
    return out


@triton.jit
def dot_terms(a, b, acc, DOT: tl.constexpr, TERMS: tl.constexpr, PRECISION: tl.constexpr):
    """``acc + a @ b``; float32 ``b`` as the sum of TERMS numbers in DOT: 3 bfloat16 hold all its bits."""
    if TERMS == 1:
        acc = dot(a, round_nearest(b, DOT), acc, DOT, PRECISION)
    else:
        for _ in tl.static_range(TERMS):
            term = round_nearest(b, DOT)
            acc = dot(a, term, acc, DOT, PRECISION)
            b = b - term.to(tl.float32)
    return acc


def fp32_precision() -> str:
    """How ``tl.dot`` multiplies float32: "ieee" unless ``torch.backends.cuda.matmul`` is set to TF32."""
    # what torch.backends.cuda.matmul.fp32_precision reads, at half of its time
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32" else "ieee"


def dot_options(activation: torch.dtype, weight: torch.dtype) -> dict[str, Any]:
    """Constants of a product of activations (or their gradient) with weights.

    Equal 16-bit dtypes are multiplied as they are. bfloat16 activations take a wider weight as the sum of two bfloat16
    numbers (16 bits, twice what the rounded result holds), so that float32 master weights run on tensor cores. 8-bit
    weights are exact in any activation's dtype. Other mixtures, float16 with its narrow range among them, are
    multiplied in float32.
    """
    split = activation == torch.bfloat16 and weight in (torch.float32, torch.float16)
    if activation == weight or split or weight == QUANTIZED_DTYPE:
        dtype = activation
    else:
        dtype = torch.promote_types(torch.promote_types(activation, weight), torch.float32)
    return {"DOT": TRITON_DTYPES[dtype], "SPLIT": split, "PRECISION": fp32_precision()}


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Kernels accumulate in float32, and in float64 for float64 inputs."""
    return tl.float64 if dtype == torch.float64 else tl.float32
