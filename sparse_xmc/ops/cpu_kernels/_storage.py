"""Tensors of any float dtype behind one Numba type: an address and a code, decoded tile by tile.

A kernel that touches six tensors would otherwise be compiled anew for every combination of their dtypes.
"""

import numpy as np
import torch
from numba.extending import register_jitable

from sparse_xmc.ops.cpu_kernels._numeric import (
    bfloat16_to_float32,
    float16_to_float32,
    float32_to_bfloat16,
    float32_to_float16,
)
from sparse_xmc.ops.cpu_kernels._philox import philox
from sparse_xmc.ops.cpu_kernels._pointers import advance, at_address

FLOAT32, FLOAT64, BFLOAT16, FLOAT16, UINT16, INT32, ABSENT = range(7)
_CODES = {
    torch.float32: FLOAT32,
    torch.float64: FLOAT64,
    torch.bfloat16: BFLOAT16,
    torch.float16: FLOAT16,
    torch.uint16: UINT16,
    torch.int32: INT32,
}
ROUNDS = 7  # of Philox: the fewest that pass BigCrush (Salmon et al., SC 2011, table 2)


def location(tensor: torch.Tensor | None) -> tuple[int, int]:
    """The address of a contiguous tensor, which the caller keeps alive, and the code of its dtype."""
    return (0, ABSENT) if tensor is None else (tensor.data_ptr(), _CODES[tensor.dtype])


@register_jitable
def read(address, code, first, count, out):
    """``out[:count]`` = elements ``first ..`` of the tensor."""
    if code == FLOAT32:
        floats = advance(at_address(address, np.float32), first)
        for i in range(count):
            out[i] = floats[i]
    elif code == FLOAT64:
        doubles = advance(at_address(address, np.float64), first)
        for i in range(count):
            out[i] = doubles[i]
    elif code == BFLOAT16:
        brains = advance(at_address(address, np.uint16), first)
        for i in range(count):
            out[i] = bfloat16_to_float32(brains[i])
    elif code == FLOAT16:
        halves = advance(at_address(address, np.int16), first)
        for i in range(count):
            out[i] = float16_to_float32(halves[i])


@register_jitable
def read_offsets(address, code, first, count, stride, out):
    """``out[:count] = stride * index`` for elements ``first ..`` of an index tensor, as uint32."""
    if code == UINT16:
        short = advance(at_address(address, np.uint16), first)
        for i in range(count):
            out[i] = np.uint32(np.uint32(short[i]) * np.uint32(stride))
    else:
        long = advance(at_address(address, np.int32), first)
        for i in range(count):
            out[i] = np.uint32(np.uint32(long[i]) * np.uint32(stride))


@register_jitable
def write(address, code, first, count, values):
    """Stores ``values[:count]`` from element ``first`` on, rounded to nearest even."""
    if code == FLOAT32:
        floats = advance(at_address(address, np.float32), first)
        for i in range(count):
            floats[i] = np.float32(values[i])
    elif code == FLOAT64:
        doubles = advance(at_address(address, np.float64), first)
        for i in range(count):
            doubles[i] = np.float64(values[i])
    elif code == BFLOAT16:
        brains = advance(at_address(address, np.uint16), first)
        for i in range(count):
            brains[i] = float32_to_bfloat16(np.float32(values[i]))
    elif code == FLOAT16:
        halves = advance(at_address(address, np.int16), first)
        for i in range(count):
            halves[i] = float32_to_float16(np.float32(values[i]))


@register_jitable
def round_bfloat16(value, noise):
    """Stochastic rounding with 16 random bits; a finite value stays finite."""
    bits = np.float32(value).view(np.uint32)
    if bits & np.uint32(0x7F800000) == np.uint32(0x7F800000):
        return float32_to_bfloat16(np.float32(value))
    # bfloat16 is the upper half of float32, subnormals included
    rounded = np.uint32(bits + np.uint32(noise)) >> np.uint32(16)
    if rounded & np.uint32(0x7F80) == np.uint32(0x7F80):
        rounded = (rounded & np.uint32(0x8000)) | np.uint32(0x7F7F)
    return np.uint16(rounded)


@register_jitable
def round_float16(value, noise):
    """Stochastic rounding with 16 random bits; a finite value stays finite."""
    bits = np.float32(value).view(np.uint32)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    if magnitude >= np.uint32(0x7F800000):
        return float32_to_float16(np.float32(value))
    if magnitude >= np.uint32(0x477FE000):  # 65504
        half = np.uint32(0x7BFF)
    elif magnitude >= np.uint32(0x38800000):  # 2^-14: 13 bits are dropped
        half = np.uint32(magnitude + (np.uint32(noise) >> np.uint32(3)) - np.uint32(112 << 23)) >> np.uint32(13)
    else:
        units = np.float32(magnitude.view(np.float32) * np.float32(2.0**24))  # of the subnormal spacing
        below = np.floor(units)
        share = np.uint32(np.floor((units - below) * np.float32(65536) + np.float32(0.5)))
        half = np.uint32(below) + (np.uint32(noise) + share >> np.uint32(16))
    return np.int16(np.uint16(sign | half))


@register_jitable
def write_stochastic(address, code, first, count, values, seed, label, step, stream):
    """As ``write`` to a bfloat16 or float16 tensor, for all slots of ``label``, but rounded stochastically."""
    # values [count]
    brains, halves = advance(at_address(address, np.uint16), first), advance(at_address(address, np.int16), first)
    for i in range(0, count, 8):
        words = philox(seed, label, i // 8, step, stream, ROUNDS)
        for j in range(min(8, count - i)):
            noise = np.uint32(words[j // 2] >> np.uint32(16 * (j % 2))) & np.uint32(0xFFFF)
            if code == BFLOAT16:
                brains[i + j] = round_bfloat16(values[i + j], noise)
            else:
                halves[i + j] = round_float16(values[i + j], noise)
