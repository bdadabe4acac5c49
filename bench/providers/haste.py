"""The published CUDA kernels of HASTE (xmc-aalto/haste, ICML 2026) as a peer on the GPU.

None of its code is part of this repository. Build its ``shared_ffi`` extension out of tree (needs nvcc; not tried here)::

    pip install --no-build-isolation git+https://github.com/xmc-aalto/haste@ceeda5bfd54a7889cfdefa01abc658831d4d6bf9

Then write a small Python module that calls ``shared_ffi.ffi_forward``, ``backward_features`` and ``backward_weights``, which
take ``x`` feature by feature (its ``bindings.py`` shows how), and name that file in ``SPARSE_XMC_HASTE``. It defines, for CUDA
tensors and one shared row of ``indices [R, K]`` int32 per ``group_size`` labels (``L`` a multiple of it)::

    forward(x, weight, indices, group_size) -> y                    # [B, D], [L, K] -> [B, L]
    backward_input(dy, weight, indices, in_features, group_size) -> dx
    backward_weight(dy, x, indices, group_size) -> dw               # [L, K]

It is checked, timed and counted like every other provider, in the same run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bench.point import Point
from bench.problem import Problem
from bench.provider import Unsupported
from bench.providers._linear import Linear, LinearProvider, matrices_bytes
from bench.weights import EllWeights, Weights

VARIABLE = "SPARSE_XMC_HASTE"
_GROUP_SIZES = (16, 32, 64)


class _HasteLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, indices: Tensor, group_size: int, peer: ModuleType) -> Tensor:
        ctx.save_for_backward(x, weight, indices)
        ctx.group_size, ctx.peer = group_size, peer
        return peer.forward(x, weight, indices, group_size)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, indices = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = ctx.peer.backward_input(dy, weight, indices, x.shape[1], ctx.group_size)
        if ctx.needs_input_grad[1]:
            dw = ctx.peer.backward_weight(dy, x, indices, ctx.group_size)
        return dx, dw, None, None, None


class Haste(LinearProvider):
    name = "haste"
    label = "HASTE kernels"
    colour = "#00917c"
    modes: Sequence[str] = ("forward", "backward_input", "backward_weight", "full")

    def unsupported(self, point: Point) -> str | None:
        if point.device != "cuda":
            return "HASTE has CUDA kernels only"
        if VARIABLE not in os.environ:
            return f"{VARIABLE} does not name a module that wraps a build of xmc-aalto/haste"
        if point.G not in _GROUP_SIZES or point.L % point.G or point.K % 16 or point.K > 128:
            return f"HASTE needs G in {_GROUP_SIZES} dividing L and K a multiple of 16 up to 128"
        return None

    def predicted_bytes(self, point: Point) -> int:
        return matrices_bytes(point, point.L * point.K)

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        peer, indices = _load(Path(os.environ[VARIABLE])), problem.indices.to(torch.int32)
        weights = EllWeights(problem.weight.clone(), indices, point.D, point.G)
        run: Callable[..., Tensor] = _HasteLinear.apply
        return lambda x: run(x, weights.weight, indices, point.G, peer), weights


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("haste_peer", path)
    if spec is None or spec.loader is None or not path.exists():
        raise Unsupported(f"{VARIABLE}={path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PROVIDERS = (Haste(),)
