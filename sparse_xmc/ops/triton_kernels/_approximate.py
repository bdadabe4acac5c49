"""Exponential, reciprocal and logarithm as the loss needs them: float32 without range guards, float64 in full.

``ex2.approx.ftz`` (error below 2^-22) overflows to infinity and ``rcp.approx.ftz`` (1 ulp) takes that to 0, which is what a
sigmoid wants; Triton's own exponential and division guard both ends with nine more instructions. Source: PTX ISA.
"""

import triton
import triton.language as tl
from triton.language.target_info import is_cuda

from sparse_xmc.ops.triton_kernels._rounding import INTERPRETED

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def exp_fast(x):
    """exp(x)."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    elif INTERPRETED:
        return tl.exp2(x * LOG2E)
    elif is_cuda():
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x * LOG2E], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x * LOG2E)


@triton.jit
def reciprocal_fast(x):
    """1 / x."""
    if x.dtype == tl.float64 or INTERPRETED:
        return 1.0 / x
    elif is_cuda():
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x


@triton.jit
def log1p(e):
    """log(1 + e) for e in [0, 1], relative error below 4e-7 (float32)."""
    if e.dtype == tl.float64:
        u = 1.0 + e
        return tl.log(u) + (e - (u - 1.0)) / u
    else:
        p = 0.04408961534500122 + e * -0.008539204485714436
        p = -0.10768169164657593 + e * p
        p = 0.17745240032672882 + e * p
        p = -0.24495461583137512 + e * p
        p = 0.33275479078292847 + e * p
        p = -0.4999740421772003 + e * p
        p = 0.9999998211860657 + e * p
        return e * p
