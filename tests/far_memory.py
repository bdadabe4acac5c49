"""Kernels at offsets beyond 2^31 in little memory: huge tensors that nobody touches, and one program of a grid.

Triton's interpreter wraps int32 arithmetic silently, as a GPU does; an offset that wraps reads or writes elsewhere.
"""

import contextlib
import math
import mmap
from collections.abc import Iterator
from unittest import mock

import torch

MAP_NORESERVE = 0x4000


def huge(*size: int, dtype: torch.dtype) -> torch.Tensor:
    """Zeros whose pages exist only once they are written to; memory is not reserved for them."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, math.prod(size) * dtype.itemsize, flags=flags), dtype=dtype).view(size)


@contextlib.contextmanager
def last_program_only() -> Iterator[None]:
    """Interpreted kernels with one-dimensional grids run their last program alone."""
    from triton.runtime.interpreter import InterpretedFunction, interpreter_builder

    run, set_dim, set_idx = InterpretedFunction.run, interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx

    def last(self, *args, grid, warmup, **kwargs):
        (programs,) = grid(kwargs) if callable(grid) else grid
        with (
            mock.patch.object(interpreter_builder, "set_grid_dim", lambda *_: set_dim(programs, 1, 1)),
            mock.patch.object(interpreter_builder, "set_grid_idx", lambda *_: set_idx(programs - 1, 0, 0)),
        ):
            return run(self, *args, grid=(1,), warmup=warmup, **kwargs)

    with mock.patch.object(InterpretedFunction, "run", last):
        yield
