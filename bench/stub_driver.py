"""A driver of Triton's that compiles for sm_90 and launches into nothing: the host's part of a call without a GPU.

For a process of its own; Triton then takes CPU tensors for those of its device.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

OPS = ("linear", "loss", "topk", "prune_regrow", "transpose", "step", "cross_entropy", "_regrow", "_targets")


class Launcher:
    """Counts launches."""

    calls = 0

    def __init__(self, source: Any, metadata: Any) -> None:
        pass

    def __call__(self, *arguments: Any) -> None:
        Launcher.calls += 1


class _Utils:
    def load_binary(self, *arguments: Any) -> tuple[int, ...]:
        return (1, 1, 32, 0, 1024)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10, "multiprocessor_count": 132, "warpSize": 32}

    def unload_module(self, *arguments: Any) -> None:
        pass


class StubDriver(DriverBase):
    launcher_cls = Launcher
    utils = _Utils()

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing can be timed on a stub")


def use() -> None:
    """Makes the ops call the Triton launchers with CPU tensors, on the stub."""
    triton.runtime.driver.set_active(StubDriver())
    backend = importlib.import_module("sparse_xmc.ops._backend")

    def kernels(op: str, tensor: torch.Tensor) -> Any:
        return backend._load("triton", op)

    for name in OPS:
        module = importlib.import_module(f"sparse_xmc.ops.{name}")
        if hasattr(module, "kernels"):
            module.kernels = kernels
