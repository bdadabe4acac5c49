"""Which kernels serve a tensor: Triton for GPU tensors, Numba for CPU tensors.

With ``TRITON_INTERPRET=1`` the Triton kernels serve CPU tensors too; that is meant for tests only.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, overload

import torch

if TYPE_CHECKING:
    from sparse_xmc.ops._contract import (
        CentroidKernels,
        InitKernels,
        LinearKernels,
        LossKernels,
        RewireKernels,
        TargetKernels,
        TopkKernels,
        TransposeKernels,
    )


@functools.cache
def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter in this process."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


_DEBUG = "SPARSE_XMC_DEBUG"
_Environment = type(os.environ)
# in the dictionary behind os.environ; None in a Python that has none
_DEBUG_KEY = os.environ.encodekey(_DEBUG) if isinstance(getattr(os.environ, "_data", None), dict) else None


def debugging() -> bool:
    """Whether checks that need a device sync run on every call (``SPARSE_XMC_DEBUG=1``)."""
    environment = os.environ
    # of a variable that is not set os.environ raises and catches an exception, which takes longer than most checks of a call
    if _DEBUG_KEY is not None and type(environment) is _Environment:
        found: dict[Any, Any] = environment._data  # type: ignore[attr-defined]
        if _DEBUG_KEY not in found:
            return False
    return environment.get(_DEBUG, "0").lower() in ("1", "true", "on")


def capturing(tensor: torch.Tensor) -> bool:
    """Whether what is launched on the tensor's device goes into a CUDA graph instead of being run."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@functools.cache
def _load(backend: str, op: str) -> ModuleType:
    needed = {"triton": "triton", "cpu": "numba"}[backend]
    try:
        return importlib.import_module(f"sparse_xmc.ops.{backend}_kernels.{op}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != needed:
            raise
        raise ModuleNotFoundError(
            f"the {backend} kernels of sparse_xmc need {needed!r}, which is not installed: pip install {needed}",
            name=error.name,
        ) from error


class _Elsewhere:
    """Kernels for tensors of a GPU that is not the current one: Triton launches on the current one, not on its arguments'."""

    def __init__(self, module: ModuleType, device: torch.device) -> None:
        self._module, self._device = module, device

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._module, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            with torch.cuda.device(self._device):
                return function(*arguments, **keywords)

        return call


def cpu_kernels(op: str) -> ModuleType:
    """The kernel module of an op that has kernels for CPU tensors only."""
    return _load("cpu", op)


@overload
def kernels(op: Literal["linear"], tensor: torch.Tensor) -> LinearKernels: ...
@overload
def kernels(op: Literal["loss"], tensor: torch.Tensor) -> LossKernels: ...
@overload
def kernels(op: Literal["targets"], tensor: torch.Tensor) -> TargetKernels: ...
@overload
def kernels(op: Literal["topk"], tensor: torch.Tensor) -> TopkKernels: ...
@overload
def kernels(op: Literal["prune_regrow"], tensor: torch.Tensor) -> RewireKernels: ...
@overload
def kernels(op: Literal["transpose"], tensor: torch.Tensor) -> TransposeKernels: ...
@overload
def kernels(op: Literal["init_indices"], tensor: torch.Tensor) -> InitKernels: ...
@overload
def kernels(op: Literal["informed_indices"], tensor: torch.Tensor) -> CentroidKernels: ...


def kernels(op: str, tensor: torch.Tensor) -> Any:
    """The kernel module of ``op`` for the device that ``tensor`` is on, which is the current one when they launch."""
    if tensor.is_cuda:
        module = _load("triton", op)
        return module if tensor.get_device() == torch._C._cuda_getDevice() else _Elsewhere(module, tensor.device)
    if tensor.is_cpu and interpreting():
        return _load("triton", op)
    if tensor.is_cpu:
        return _load("cpu", op)
    raise ValueError(f"sparse_xmc has kernels for 'cuda' and 'cpu' tensors, got a tensor on {tensor.device}")
