"""Modes of every provider that is a differentiable function ``x -> y``: autograd does the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bench.point import LEARNING_RATE, TOP_K, Point
from bench.problem import Problem
from bench.provider import Case, Provider
from bench.weights import Weights

Produced = dict[str, Tensor | list[Tensor]]
Linear = Callable[[Tensor], Tensor]
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


def sparse_bce(y: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    """BCE with logits against sparse targets: sum over labels, mean over rows. Needs no ``[B, L]`` targets."""
    return (softplus(y).sum() - y[rows, labels].sum()) / y.shape[0]


class LinearProvider(Provider):
    """A layer with logits: parts by ``torch.autograd.grad``, the step as loss, backward and plain SGD."""

    modes: Sequence[str] = ("forward", "backward_input", "backward_weight", "full", "step", "softmax", "topk")

    @abstractmethod
    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        """The layer as a differentiable function of x and of ``weights.parameters()``."""

    def objective(self, linear: Linear) -> Objective:
        """The loss as a function of x and of rows and labels of the positives."""
        return lambda x, rows, labels: sparse_bce(linear(x), rows, labels)

    def cross_entropy(self, linear: Linear, weights: Weights, x: Tensor, classes: Tensor) -> Tensor:
        """Mean cross-entropy of the rows against their classes ``[B]``."""
        return torch.nn.functional.cross_entropy(linear(x), classes)

    def build(self, point: Point, problem: Problem) -> Case:
        linear, weights = self.layer(point, problem)
        x = problem.x.detach().clone().requires_grad_(point.mode != "backward_weight")
        trained = point.mode not in ("backward_input", "forward", "topk")
        for parameter in weights.parameters():
            parameter.requires_grad_(trained)
        return Case(getattr(self, f"_{point.mode}")(linear, weights, x, problem), weights)

    def _forward(self, linear: Linear, weights: Weights, x: Tensor, problem: Problem) -> Callable[[], Produced]:
        def run() -> Produced:
            with torch.no_grad():
                return {"y": linear(x)}

        return run

    def _backward_input(self, linear: Linear, weights: Weights, x: Tensor, problem: Problem) -> Callable[[], Produced]:
        y, dy = linear(x), problem.dy
        return lambda: {"dx": torch.autograd.grad(y, x, dy, retain_graph=True)[0]}

    def _backward_weight(self, linear: Linear, weights: Weights, x: Tensor, problem: Problem) -> Callable[[], Produced]:
        y, dy, parameters = linear(x), problem.dy, weights.tensors()
        return lambda: {"dw": list(torch.autograd.grad(y, parameters, dy, retain_graph=True))}

    def _full(self, linear: Linear, weights: Weights, x: Tensor, problem: Problem) -> Callable[[], Produced]:
        dy, parameters = problem.dy, weights.tensors()

        def run() -> Produced:
            y = linear(x)
            dx, *dw = torch.autograd.grad(y, [x, *parameters], dy)
            return {"y": y.detach(), "dx": dx, "dw": dw}

        return run

    def _step(self, linear: Linear, weights: Weights, x: Tensor, problem: Problem) -> Callable[[], Produced]:
        rows, labels = problem.positive_rows, problem.targets.col_indices()
        parameters, objective = weights.parameters(), self.objective(linear)

        def run() -> Produced:
            loss = objective(x, rows, labels)
            dx, *gradients = torch.autograd.grad(loss, [x, *parameters])
            with torch.no_grad():
                torch._foreach_add_(parameters, gradients, alpha=-LEARNING_RATE)
            return {"loss": loss.detach(), "dx": dx, "weight": parameters}

        return run

    def _softmax(self, linear: Linear, weights: Weights, x: Tensor, problem: Problem) -> Callable[[], Produced]:
        classes, parameters = problem.classes, weights.tensors()

        def run() -> Produced:
            loss = self.cross_entropy(linear, weights, x, classes)
            dx, *dw = torch.autograd.grad(loss, [x, *parameters])
            return {"loss": loss.detach(), "dx": dx, "dw": dw}

        return run

    def _topk(self, linear: Linear, weights: Weights, x: Tensor, problem: Problem) -> Callable[[], Produced]:
        def run() -> Produced:
            with torch.no_grad():
                scores, labels = linear(x).topk(TOP_K, dim=1)
            return {"scores": scores, "labels": labels}

        return run


def matrices_bytes(point: Point, parameters: int, logit_matrices: float | None = None) -> int:
    """Parameters, their gradients where the mode has them, and the ``[B, L]`` matrices that are alive at once."""
    copies = 2 if point.mode in ("full", "step", "softmax", "backward_weight") else 1
    alive = {"forward": 1, "topk": 1, "backward_input": 2, "backward_weight": 2, "full": 2, "step": 3, "softmax": 3}
    logits = alive.get(point.mode, 1) if logit_matrices is None else logit_matrices
    return int((copies * parameters + logits * point.B * point.L) * point.itemsize)
