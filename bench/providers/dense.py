"""The layer that everybody starts with, ``nn.Linear``, and what is done about its cost: compile, chunk, low rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import linear as dense_linear
from torch.nn.functional import softplus

from bench.point import LEARNING_RATE, TOP_K, Point
from bench.problem import Problem
from bench.provider import Case, Provider
from bench.providers._linear import Linear, LinearProvider, Objective, Produced, matrices_bytes, sparse_bce
from bench.weights import DenseWeights, FactorWeights, Weights

_CHUNK_ELEMENTS = 1 << 23  # logits that a chunk holds


def dense_weights(point: Point, problem: Problem) -> DenseWeights:
    """A full ``[L, D]`` matrix: it has ``D / K`` times the connections, that is the price of the dense layer."""
    return DenseWeights(problem.normal(5, point.L, point.D, scale=point.D**-0.5), problem.bias)


class Dense(LinearProvider):
    name = "dense"
    label = "nn.Linear"
    colour = "#000000"

    def predicted_bytes(self, point: Point) -> int:
        return matrices_bytes(point, point.L * point.D)

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        weights = dense_weights(point, problem)
        return lambda x: dense_linear(x, weights.weight, weights.bias), weights


class DenseCompiled(Dense):
    name = "dense_compiled"
    label = "nn.Linear, torch.compile"
    colour = "#637939"
    modes: Sequence[str] = ("forward", "full", "step")

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        import torch._inductor.config as inductor

        inductor.compile_threads = 1  # no pool of compiler processes beside a measurement
        linear, weights = super().layer(point, problem)
        return torch.compile(linear, dynamic=False), weights

    def objective(self, linear: Linear) -> Objective:
        plain = getattr(linear, "_torchdynamo_orig_callable", linear)
        return torch.compile(lambda x, rows, labels: sparse_bce(plain(x), rows, labels), dynamic=False)


class DenseChunked(Provider):
    """Labels in chunks, loss, gradients and update of one chunk before the next: no ``[B, L]`` matrix."""

    name = "dense_chunked"
    label = "dense, chunked step"
    colour = "#56b4e9"
    modes: Sequence[str] = ("step", "topk")

    def predicted_bytes(self, point: Point) -> int:
        return point.L * point.D * point.itemsize + 4 * _CHUNK_ELEMENTS * point.itemsize

    def build(self, point: Point, problem: Problem) -> Case:
        weights = dense_weights(point, problem)
        chunk = min(point.L, max(1, _CHUNK_ELEMENTS // max(point.B, point.D)))
        run = _chunked_step if point.mode == "step" else _chunked_topk
        return Case(run(weights, problem, chunk), weights)


def _chunked_step(weights: DenseWeights, problem: Problem, chunk: int) -> Callable[[], Produced]:
    assert weights.bias is not None
    x, weight, bias = problem.x, weights.weight.detach(), weights.bias.detach()
    order = problem.targets.col_indices().sort()
    labels, rows = order.values, problem.positive_rows[order.indices]
    starts = list(range(0, len(weight), chunk))
    bounds = torch.searchsorted(labels, torch.tensor([*starts, len(weight)], device=labels.device)).tolist()

    def run() -> Produced:
        loss = torch.zeros((), device=x.device)
        dx = torch.zeros(x.shape, device=x.device)
        for i, start in enumerate(starts):
            w, b = weight[start : start + chunk], bias[start : start + chunk]
            mine = rows[bounds[i] : bounds[i + 1]], labels[bounds[i] : bounds[i + 1]] - start
            z = dense_linear(x, w, b)
            loss += softplus(z).sum(dtype=torch.float32) - z[mine].sum(dtype=torch.float32)
            dz = z.sigmoid_()
            dz[mine] -= 1
            dz *= 1 / len(x)
            dx += dz @ w
            w.sub_(dz.t() @ x, alpha=LEARNING_RATE)
            b.sub_(dz.sum(0), alpha=LEARNING_RATE)
        return {"loss": loss / len(x), "dx": dx.to(x.dtype), "weight": [weight, bias]}

    return run


def _chunked_topk(weights: DenseWeights, problem: Problem, chunk: int) -> Callable[[], Produced]:
    x, weight, bias = problem.x, weights.weight, weights.bias
    assert bias is not None

    def run() -> Produced:
        scores, labels = [], []
        for start in range(0, len(weight), chunk):
            z = dense_linear(x, weight[start : start + chunk], bias[start : start + chunk])
            best = z.topk(min(TOP_K, z.shape[1]), dim=1)
            scores.append(best.values)
            labels.append(best.indices + start)
        best = torch.cat(scores, dim=1).topk(TOP_K, dim=1)
        return {"scores": best.values, "labels": torch.cat(labels, dim=1).gather(1, best.indices)}

    return run


class Bottleneck(LinearProvider):
    """Two dense layers ``[D, r]`` and ``[r, L]`` with the multiplications of a fan-in of K: the low-rank rival."""

    name = "bottleneck"
    label = "low rank, same FLOPs"
    colour = "#cc79a7"

    @staticmethod
    def rank(point: Point) -> int:
        return max(1, round(point.K * point.L / (point.L + point.D)))

    def predicted_bytes(self, point: Point) -> int:
        return matrices_bytes(point, self.rank(point) * (point.L + point.D))

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        rank = self.rank(point)
        up = problem.normal(6, point.L, rank, scale=rank**-0.5)
        down = problem.normal(7, rank, point.D, scale=point.D**-0.5)
        weights = FactorWeights(up, down, problem.bias)
        return lambda x: dense_linear(dense_linear(x, down), up, weights.bias), weights


PROVIDERS = (Dense(), DenseCompiled(), DenseChunked(), Bottleneck())
