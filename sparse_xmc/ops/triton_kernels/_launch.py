"""What launchers share: the device guard, cached launches and the padded feature-major copy of an input."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sparse_xmc.ops._arguments import logits_stride

# rows of a feature-major matrix start at multiples of this, so that any 16-byte load of a row is aligned and unmasked
ROW_ALIGNMENT = 16


def on_device(tensor: Tensor) -> AbstractContextManager:
    """Makes the tensor's GPU the current one: Triton launches on the current device, not on its arguments'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


# Triton releases whose compiled kernels are called as ``launch`` does; others are launched by their public interface
_KNOWN = ("3.6", "3.7")
_CACHES = ".".join(triton.__version__.split(".")[:2]) in _KNOWN
_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_NARROW, _WIDE = 1 << 31, 1 << 63
_compiled: dict[tuple[Any, ...], tuple[Any, ...]] = {}


def cdiv(size: int, step: int) -> int:
    """``ceil(size / step)``; Triton's own takes microseconds."""
    return -(-size // step)


def power_of_2(size: int) -> int:
    """The least power of two that is not below ``size``."""
    return 1 << max(0, size - 1).bit_length()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """``kernel[grid](*arguments, **constants)`` in a third of the time, from the second call with alike arguments on.

    Triton binds and specialises all arguments anew in every launch. Here a launch is looked up by what it specialises on:
    dtype and alignment of tensors, width and divisibility of integers, which are None, and the constants.

    Args:
        kernel: a ``triton.jit`` function, not an autotuned one.
        arguments: tensors, numbers and None, for the leading parameters in their order.
        constants: of all other parameters, and options like ``num_warps``; always in the same order at one place.
    """
    key = _key(kernel, arguments, constants)
    if key is None:
        kernel[grid](*arguments, **constants)
        return
    found = _compiled.get(key)
    if found is None:
        compiled = kernel[grid](*arguments, **constants)
        rest = [p.name for p in kernel.params[len(arguments) :]]
        if compiled is not None and all(name in constants for name in rest):
            compiled_with = tuple(constants[name] for name in rest)
            _compiled[key] = (compiled.run, compiled.function, compiled.packed_metadata, compiled_with)
        return
    run, function, metadata, rest_values = found
    stream = driver.active.get_current_stream(key[1])
    x, y, z = (*grid, 1, 1)[:3]
    run(x, y, z, stream, function, metadata, None, None, None, *arguments, *rest_values)


def _key(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any]) -> tuple[Any, ...] | None:
    """What a launch depends on, or None if it must take Triton's way: interpreted, watched by hooks, other arguments."""
    if not _CACHES or type(kernel) is not JITFunction or kernel.pre_run_hooks or _hooked():
        return None
    key: list[Any] = [id(kernel), 0]
    append, addresses = key.append, 0
    for argument in arguments:
        kind = type(argument)
        if argument is None:
            append(None)
        elif kind in _TENSORS:
            append(argument.dtype)
            address = argument.data_ptr()
            addresses |= address
            if not address and argument.is_meta:
                return None
        elif kind is int:
            code = 1 if argument == 1 else 2 if argument & 15 else 3
            append(code if -_NARROW <= argument < _NARROW else code + 3 if -_WIDE <= argument < _WIDE else code + 6)
        elif kind is float:
            append(kind)
        else:
            return None
    if addresses & 15:  # rare: which tensors are not aligned is left to Triton
        return None
    key[1] = driver.active.get_current_device()
    return (*key, *constants.values())


def _hooked() -> bool:
    """Whether somebody, a profiler for one, is told of every launch."""
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


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


def empty_logits(x: Tensor, out_features: int) -> Tensor:
    """``[B, L]`` in x's dtype whose rows lie ``logits_stride`` apart; the gaps belong to it too, the last one included."""
    stride = logits_stride(x.device, out_features)
    rows = torch.empty(x.shape[0], stride, dtype=x.dtype, device=x.device)
    if stride == out_features or x.is_meta:
        return rows[:, :out_features]
    # no view: the caller may change logits in place
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        rows.untyped_storage(), 0, (x.shape[0], out_features), (stride, 1)
    )


def readable_labels(dy: Tensor) -> int:
    """How many labels of every row of ``dy [B, L]`` may be read: more than L where rows are padded as those of logits."""
    (B, L), stride = dy.shape, padded(dy.shape[1])
    if dy.is_meta:
        return stride if dy.stride() == (stride, 1) else L
    room = dy.untyped_storage().nbytes() // dy.element_size() - dy.storage_offset()
    return stride if dy.stride() == (stride, 1) and B * stride <= room else L
