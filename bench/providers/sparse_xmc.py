"""sparse_xmc itself: the layer with logits, the fused head, rewiring; per-label or with rows shared by 32 labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from torch import Tensor

from bench.point import LEARNING_RATE, REWIRE_FRACTION, TOP_K, Point
from bench.problem import Problem
from bench.provider import Case
from bench.providers._linear import Linear, LinearProvider, Objective, matrices_bytes
from bench.weights import EllWeights, Weights
from sparse_xmc import ops

Run = Callable[[], dict[str, Tensor | list[Tensor]]]


def ell_weights(point: Point, problem: Problem) -> EllWeights:
    return EllWeights(problem.weight.clone(), problem.indices, point.D, point.G, problem.bias)


def parameter_bytes(point: Point) -> int:
    index_bytes = 2 if point.D <= 65_536 else 4
    return point.L * point.K * point.itemsize + index_bytes * point.K * -(-point.L // point.G)


class SparseXmc(LinearProvider):
    """``fixed_fan_in_linear`` and what autograd and ``torch`` make of it. ``group_size`` overrides the point's."""

    modes: Sequence[str] = (*LinearProvider.modes, "rewire")

    def __init__(
        self, name: str, label: str, colour: str, *, group_size: int | None = None, deterministic: bool | None = None
    ):
        self.name, self.label, self.colour = name, label, colour
        self.group_size, self.deterministic = group_size, deterministic
        if deterministic:
            self.modes = ("backward_input", "full")

    def unsupported(self, point: Point) -> str | None:
        if self.deterministic and point.device == "cpu":
            return "on the CPU the input gradient is always deterministic: the same kernels as without"
        return None

    def predicted_bytes(self, point: Point) -> int:
        point = self._own(point)
        return matrices_bytes(point, point.L * point.K) + parameter_bytes(point)

    def _own(self, point: Point) -> Point:
        return point if self.group_size is None else dataclasses.replace(point, G=self.group_size)

    def build(self, point: Point, problem: Problem) -> Case:
        own = self._own(point)
        problem = problem if own == point else problem.at(own)
        if point.mode == "rewire":
            return _rewire(own, problem)
        return super().build(own, problem)

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        weights = ell_weights(point, problem)

        def linear(x: Tensor) -> Tensor:
            return ops.fixed_fan_in_linear(
                x, weights.weight, weights.indices, weights.bias, group_size=point.G, deterministic=self.deterministic
            )

        return linear, weights


def _rewire(point: Point, problem: Problem) -> Case:
    weights = dataclasses.replace(ell_weights(point, problem), indices=problem.indices.clone())
    weight, indices = weights.weight, weights.indices
    calls = 0

    def run() -> dict[str, Tensor | list[Tensor]]:
        nonlocal calls
        calls += 1
        ops.prune_regrow_(weight, indices, point.D, fraction=REWIRE_FRACTION, seed=calls, group_size=point.G)
        return {"weight": weight, "indices": indices}

    return Case(run, weights)


class SparseXmcFused(SparseXmc):
    """The fused head: ``fixed_fan_in_step_`` and ``fixed_fan_in_topk``, which hold no ``[B, L]`` matrix."""

    modes: Sequence[str] = ("step", "topk")

    def predicted_bytes(self, point: Point) -> int:
        return 2 * parameter_bytes(self._own(point)) + (64 << 20)

    def build(self, point: Point, problem: Problem) -> Case:
        own = self._own(point)
        problem = problem if own == point else problem.at(own)
        weights = ell_weights(own, problem)
        return Case((_fused_step if point.mode == "step" else _fused_topk)(own, problem, weights), weights)


def _fused_step(point: Point, problem: Problem, weights: EllWeights) -> Run:
    from sparse_xmc.optim.fused import FusedSGD

    optimizer = FusedSGD(LEARNING_RATE)
    optimizer.attach(weights.weight, weights.bias)

    def run() -> dict[str, Tensor | list[Tensor]]:
        loss, dx = ops.fixed_fan_in_step_(
            problem.x, weights.weight, weights.indices, weights.bias, problem.targets, optimizer, group_size=point.G
        )
        assert dx is not None
        return {"loss": loss, "dx": dx, "weight": weights.parameters()}

    return run


def _fused_topk(point: Point, problem: Problem, weights: EllWeights) -> Run:
    def run() -> dict[str, Tensor | list[Tensor]]:
        scores, labels = ops.fixed_fan_in_topk(
            problem.x, weights.weight, weights.indices, weights.bias, k=TOP_K, group_size=point.G
        )
        return {"scores": scores, "labels": labels}

    return run


class SparseXmcFusedLoss(SparseXmc):
    """``fixed_fan_in_loss`` with autograd and torch's own update: any optimizer, still no ``[B, L]`` matrix."""

    modes: Sequence[str] = ("step", "softmax")

    def predicted_bytes(self, point: Point) -> int:
        return 3 * parameter_bytes(self._own(point)) + (64 << 20)

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        weights = ell_weights(point, problem)
        targets = problem.targets

        def loss(x: Tensor) -> Tensor:
            return ops.fixed_fan_in_loss(x, weights.weight, weights.indices, weights.bias, targets, group_size=point.G)

        return loss, weights

    def objective(self, linear: Linear) -> Objective:
        return lambda x, rows, labels: linear(x)

    def cross_entropy(self, linear: Linear, weights: Weights, x: Tensor, classes: Tensor) -> Tensor:
        assert isinstance(weights, EllWeights)
        layer = (weights.weight, weights.indices, weights.bias)
        return ops.fixed_fan_in_loss(x, *layer, classes, loss="cross_entropy", group_size=weights.group_size)


PROVIDERS = (
    SparseXmc("sparse_xmc", "sparse_xmc", "#e69f00"),
    SparseXmcFused("sparse_xmc_fused", "sparse_xmc, fused", "#d55e00"),
    SparseXmc("sparse_xmc_group32", "sparse_xmc G=32", "#f5c04d", group_size=32),
    SparseXmcFused("sparse_xmc_group32_fused", "sparse_xmc G=32, fused", "#8c3b00", group_size=32),
    SparseXmcFusedLoss("sparse_xmc_fused_loss", "sparse_xmc, fused loss only", "#d62728"),
    SparseXmc("sparse_xmc_deterministic", "sparse_xmc, deterministic", "#ff9896", deterministic=True),
)
