"""Fixtures of the whole suite.

The suite runs twice: once as it is (CPU kernels, and GPU kernels where there is a GPU) and once with TRITON_INTERPRET=1
(Triton kernels on CPU tensors; for tests that use the ``device`` fixture).
"""

import importlib.util
import os
import sys

import pytest
import torch
from torch.utils._device import _device_constructors

INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") == "1"


def devices() -> list:
    """The devices that this machine has kernels for; with TRITON_INTERPRET=1 'cpu' means interpreted Triton kernels."""
    found = ["cpu"] if INTERPRETING or importlib.util.find_spec("numba") else []
    if torch.cuda.is_available():
        found.append(pytest.param("cuda", marks=pytest.mark.gpu))
    return found


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of ``devices()``, one after the other."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the package allocates uninitialised holds NaN (or 0x7F.. for integers), so unwritten elements show."""
    _device_constructors()  # remembers what ``with torch.device(...)`` redirects: not the wrappers

    def poison(allocate):
        def wrapper(*args, **kwargs):
            out = allocate(*args, **kwargs)
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith("sparse_xmc.ops") and type(out) is torch.Tensor and out.device.type != "meta":
                with torch.no_grad():
                    if out.is_floating_point():
                        out.fill_(float("nan"))
                    elif out.dtype != torch.bool:
                        out.view(torch.uint8).fill_(0x7F) if out.dim() and out.numel() else None
            return out

        return wrapper

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
