"""8-bit weights in the Triton kernels: float8 e4m3 as uint8, decoded with integer instructions.

Only GPUs from sm_89 and gfx942 on convert e4m3 themselves, and Triton refuses the type on others.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparse_xmc.ops._arguments import QUANTIZED_DTYPE


def as_stored(weight: Tensor) -> Tensor:
    """The weight as kernels take it: e4m3 as uint8."""
    return weight.view(torch.uint8) if weight.dtype == QUANTIZED_DTYPE else weight


@triton.jit
def decode(stored):
    """Weights as loaded: e4m3 bit patterns (uint8) become float32, all else stays."""
    if stored.dtype == tl.uint8:
        bits = stored.to(tl.uint32)
        magnitude = bits & 0x7F
        # the exponent of float32 at e4m3's bits is 120 too small; 0x7F is the only NaN
        value = (((bits & 0x80) << 24) | (magnitude << 20)).to(tl.float32, bitcast=True) * 1.329227995784916e36
        return tl.where(magnitude == 0x7F, float("nan"), value)
    else:
        return stored
