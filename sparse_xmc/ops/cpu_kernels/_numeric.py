"""Float formats in Numba: bfloat16 travels as ``uint16``, float16 as ``int16``, float8 e4m3 as ``uint8``; converted at
every load and store.

Numba has none of them on a CPU. The bit patterns come in under different integer types, so the right conversion is
chosen when a kernel is compiled.
"""

import ctypes
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload, register_jitable

_ARRAY_DTYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.bfloat16: np.dtype(np.uint16),
    torch.float16: np.dtype(np.int16),
    torch.float8_e4m3fn: np.dtype(np.uint8),
    torch.uint16: np.dtype(np.uint16),
    torch.int16: np.dtype(np.int16),
    torch.int32: np.dtype(np.int32),
    torch.int64: np.dtype(np.int64),
}


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor, which the array keeps alive, as an array that the kernels understand.

    ``Tensor.numpy`` would forbid that the storage is ever resized, which is how FSDP frees gathered parameters.
    """
    if not tensor.is_contiguous():
        raise ValueError(f"kernels take contiguous memory, got strides {tensor.stride()}")
    memory: Any = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    memory.owner = tensor
    return np.ndarray(tensor.shape, _ARRAY_DTYPES[tensor.dtype], memory)


@register_jitable
def bfloat16_to_float32(bits):
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@register_jitable
def float32_to_bfloat16(value):
    """Round to nearest, ties to even; every NaN becomes the quiet NaN."""
    bits = np.float32(value).view(np.uint32)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(np.uint32(0x7FC0) if value != value else rounded)


@register_jitable
def float16_to_float32(bits):
    magnitude = np.uint32(np.uint16(bits) & np.uint16(0x7FFF))
    sign = np.uint32(np.uint32(np.uint16(bits) & np.uint16(0x8000)) << np.uint32(16))
    # Multiplying by 2**112 rebiases the exponent and normalises subnormals exactly.
    scaled = np.float32(np.uint32(magnitude << np.uint32(13)).view(np.float32) * np.float32(2.0**112))
    finite = np.float32(scaled).view(np.uint32)
    special = np.uint32(0x7F800000) | np.uint32(magnitude << np.uint32(13))
    return np.uint32(sign | (special if magnitude >= np.uint32(0x7C00) else finite)).view(np.float32)


@register_jitable
def float32_to_float16(value):
    """Round to nearest, ties to even; overflow becomes infinity."""
    bits = np.float32(value).view(np.uint32)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    bits = np.uint32(bits & np.uint32(0x7FFFFFFF))
    rounded = np.uint32(bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))
    normal = np.uint32(rounded - np.uint32(112 << 23)) >> np.uint32(13)
    # Adding 0.5 puts the last bit of a float16 subnormal (2**-24) at the last bit of the sum's mantissa.
    shifted = np.float32(np.uint32(bits).view(np.float32) + np.float32(0.5))
    subnormal = np.float32(shifted).view(np.uint32) - np.uint32(0x3F000000)
    half = subnormal if bits < np.uint32(0x38800000) else normal
    half = np.uint32(0x7C00) if rounded >= np.uint32(0x47800000) else half
    half = np.uint32(0x7E00) if bits > np.uint32(0x7F800000) else half
    return np.int16(np.uint16(sign | half))


@register_jitable
def float8_to_float32(bits):
    magnitude = np.uint32(np.uint32(bits) & np.uint32(0x7F))
    sign = np.uint32((np.uint32(bits) & np.uint32(0x80)) << np.uint32(24))
    # As for float16: multiplying by 2**120 rebiases the exponent. The only special value is NaN.
    scaled = np.float32(np.uint32(magnitude << np.uint32(20)).view(np.float32) * np.float32(2.0**120))
    finite = np.float32(scaled).view(np.uint32)
    return np.uint32(sign | (np.uint32(0x7FC00000) if magnitude == np.uint32(0x7F) else finite)).view(np.float32)


def decode(value):
    """A stored element as a number."""


@overload(decode, inline="always")
def _decode(value):
    if value == types.uint16:
        return lambda value: bfloat16_to_float32(value)
    if value == types.int16:
        return lambda value: float16_to_float32(value)
    if value == types.uint8:
        return lambda value: float8_to_float32(value)
    return lambda value: value


def store(out, i, j, value):
    """``out[i, j] = value``, rounded once."""


@overload(store, inline="always")
def _store(out, i, j, value):
    if out.dtype == types.uint16:

        def impl(out, i, j, value):
            out[i, j] = float32_to_bfloat16(value)
    elif out.dtype == types.int16:

        def impl(out, i, j, value):
            out[i, j] = float32_to_float16(value)
    else:

        def impl(out, i, j, value):
            out[i, j] = value

    return impl
