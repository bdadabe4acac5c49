"""What launchers share: launches that are decided once for all alike calls.

Triton binds and specialises all arguments anew in every launch, which takes longer than many a kernel. An op therefore
keeps a plan of each kind of call in ``Plans``, under a key from which everything follows that Triton specialises on, and the
plan holds a ``Launch`` for each kernel. ``ready`` says whether a call may take them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import triton
from torch import Tensor
from triton import knobs

from sparse_xmc.ops._backend import interpreting

# rows of a feature-major matrix start at multiples of this, so that any 16-byte load of a row is aligned and unmasked
ROW_ALIGNMENT = 16
# Triton releases whose compiled kernels are called as ``Launch`` does; others are launched by their public interface
_KNOWN = ("3.6", "3.7")
_REUSES = ".".join(triton.__version__.split(".")[:2]) in _KNOWN and not interpreting()


def stream_of(tensor: Tensor) -> int:
    """The current stream of the tensor's device, as a number."""
    return torch._C._cuda_getCurrentRawStream(tensor.get_device()) if tensor.is_cuda else 0


def ready(x: Tensor, *others: Tensor | None) -> int | None:
    """The current stream of x's device, if launches on these tensors may be repeated as they were compiled.

    None where Triton has to look at each launch: a tensor is not aligned to 16 bytes or has no memory, somebody is told of
    launches (a profiler, say), in the interpreter, or in a release that is not known here. Tensors that were just
    allocated need not be named.
    """
    hooks = knobs.runtime
    enter, leave = hooks.launch_enter_hook, hooks.launch_exit_hook
    if not _REUSES or x.is_meta or getattr(enter, "calls", enter) or getattr(leave, "calls", leave):
        return None
    addresses = x.data_ptr()
    for tensor in others:
        if tensor is not None:
            addresses |= tensor.data_ptr()
    return None if addresses & 15 else stream_of(x)


class Launch:
    """A kernel with its grid and constants.

    Calling it launches. The first call goes Triton's way; later ones, if ``stream`` is not None, skip its binding. So all
    calls of one object must agree in what Triton specialises on: dtypes of tensors, which are None, and of the integers
    their width and, unless the kernel is told otherwise, whether they are 1 or divisible by 16.

    Args:
        kernel: a ``triton.jit`` function.
        grid: number of programs.
        constants: of all parameters behind those that are passed in a call, and options like ``num_warps``.
    """

    __slots__ = ("compiled", "constants", "grid", "kernel")

    def __init__(self, kernel: Any, grid: tuple[int, ...], **constants: Any) -> None:
        self.kernel, self.grid, self.constants = kernel, grid, constants
        # once it is there a call with a stream skips Triton's binding; then pointers may be given as integers too
        self.compiled: tuple[Any, ...] | None = None

    def __call__(self, stream: int | None, *arguments: Any) -> None:
        if stream is None or self.compiled is None:
            compiled = self.kernel[self.grid](*arguments, **self.constants)
            if stream is not None and compiled is not None and not self.kernel.pre_run_hooks:
                rest = tuple(self.constants[p.name] for p in self.kernel.params[len(arguments) :])
                self.compiled = compiled.run, (*self.grid, 1, 1)[:3], compiled.function, compiled.packed_metadata, rest
            return
        run, grid, function, metadata, rest = self.compiled
        run(*grid, stream, function, metadata, None, None, None, *arguments, *rest)


class Plans(dict[tuple[Any, ...], Any]):
    """What was decided about calls, by what it follows from. Calls of very many shapes make it start over."""

    LIMIT = 1024
    _all: ClassVar[list[Plans]] = []

    def __init__(self) -> None:
        super().__init__()
        self._all.append(self)

    def keep(self, key: tuple[Any, ...], plan: Any) -> Any:
        """Remembers a plan, and returns it."""
        if len(self) >= self.LIMIT:
            self.clear()
        self[key] = plan
        return plan

    @classmethod
    def forget(cls) -> None:
        """Drops all plans, as a change of what they follow from beside their keys needs."""
        for plans in cls._all:
            plans.clear()


def cdiv(size: int, step: int) -> int:
    """``ceil(size / step)``; Triton's own takes microseconds."""
    return -(-size // step)


def power_of_2(size: int) -> int:
    """The least power of two that is not below ``size``."""
    return 1 << max(0, size - 1).bit_length()


def padded(size: int) -> int:
    """``size`` rounded up to the row alignment."""
    return -(-size // ROW_ALIGNMENT) * ROW_ALIGNMENT
