"""Which kernels serve a tensor: Triton for GPU tensors, Numba for CPU tensors.

With ``TRITON_INTERPRET=1`` the Triton kernels serve CPU tensors too; that is meant for tests only.
"""

import functools
import importlib
import os
from types import ModuleType

import torch


@functools.cache
def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter in this process."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on")


def debugging() -> bool:
    """Whether checks that need a device sync run on every call (``SPARSE_XMC_DEBUG=1``)."""
    return os.environ.get("SPARSE_XMC_DEBUG", "0").lower() in ("1", "true", "on")


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


def cpu_kernels(op: str) -> ModuleType:
    """The kernel module of an op that has kernels for CPU tensors only."""
    return _load("cpu", op)


def kernels(op: str, tensor: torch.Tensor) -> ModuleType:
    """The kernel module of ``op`` for the device that ``tensor`` is on."""
    if tensor.device.type == "cuda" or (tensor.device.type == "cpu" and interpreting()):
        return _load("triton", op)
    if tensor.device.type == "cpu":
        return _load("cpu", op)
    raise ValueError(f"sparse_xmc has kernels for 'cuda' and 'cpu' tensors, got a tensor on {tensor.device}")
