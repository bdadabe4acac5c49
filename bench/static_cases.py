"""The launches that the compile gate and the static report look at: the ``compile_cases`` of every kernel module."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from sparse_xmc.ops import triton_kernels
from sparse_xmc.ops.triton_kernels._compile_case import CompileCase


def modules() -> Iterator[ModuleType]:
    """Every module of kernels, imported."""
    for info in pkgutil.iter_modules(triton_kernels.__path__):
        yield importlib.import_module(f"{triton_kernels.__name__}.{info.name}")


@functools.cache
def cases() -> dict[str, CompileCase]:
    """All cases by their full name, ``module.case``."""
    found = {}
    for module in modules():
        if hasattr(module, "compile_cases"):
            for case in module.compile_cases():
                found[f"{module.__name__.rsplit('.', 1)[1]}.{case.name}"] = case
    return found
