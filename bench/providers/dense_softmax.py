"""Dense softmax heads that never hold all logits: torch's own chunked loss, and Liger's kernel."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.point import Point
from bench.problem import Problem
from bench.provider import Unsupported
from bench.providers._linear import Linear
from bench.providers.dense import Dense
from bench.weights import Weights


class TorchChunked(Dense):
    """``torch.nn.functional.linear_cross_entropy`` with its chunking on."""

    name = "torch_linear_cross_entropy"
    label = "torch, chunked softmax"
    colour = "#aec7e8"
    modes: Sequence[str] = ("softmax",)

    def unsupported(self, point: Point) -> str | None:
        return None if hasattr(torch.nn, "LinearCrossEntropyOptions") else f"torch {torch.__version__} has none"

    def predicted_bytes(self, point: Point) -> int:
        return 2 * point.L * point.D * point.itemsize + (256 << 20)

    def cross_entropy(self, linear: Linear, weights: Weights, x: Tensor, classes: Tensor) -> Tensor:
        return torch.nn.functional.linear_cross_entropy(
            x, weights.tensors()[0], classes, linear_bias=weights.bias, options=torch.nn.LinearCrossEntropyOptions()
        )


class Liger(Dense):
    """Liger's fused linear cross-entropy: ``pip install liger-kernel``."""

    name = "liger"
    label = "Liger, chunked softmax"
    colour = "#98df8a"
    modes: Sequence[str] = ("softmax",)

    def unsupported(self, point: Point) -> str | None:
        if point.device == "cpu":
            return "Liger has GPU kernels only"
        return None if importlib.util.find_spec("liger_kernel") else "liger-kernel is not installed"

    def predicted_bytes(self, point: Point) -> int:
        return 3 * point.L * point.D * point.itemsize + (256 << 20)

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        try:
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
        except ImportError as error:
            raise Unsupported(f"liger-kernel cannot be imported: {error}") from error
        self._loss = LigerFusedLinearCrossEntropyLoss()
        return super().layer(point, problem)

    def cross_entropy(self, linear: Linear, weights: Weights, x: Tensor, classes: Tensor) -> Tensor:
        return self._loss(weights.tensors()[0], x, classes, weights.bias)


PROVIDERS = (TorchChunked(), Liger())
