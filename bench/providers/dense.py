"""The layer that everybody starts with: ``nn.Linear``."""

from __future__ import annotations

import torch
from torch.nn.functional import linear as dense_linear

from bench.problem import Problem
from bench.providers._linear import Linear, LinearProvider, matrices_bytes
from bench.registry import Point, register
from bench.weights import DenseWeights, Weights


def dense_weight(point: Point, problem: Problem) -> torch.Tensor:
    """A full ``[L, D]`` matrix: the dense layer has ``D / K`` times the connections, that is its price."""
    return problem.normal(5, point.L, point.D, scale=point.D**-0.5)


class Dense(LinearProvider):
    name = "dense"
    label = "nn.Linear"

    def predicted_bytes(self, point: Point) -> int:
        return matrices_bytes(point, point.L * point.D)

    def layer(self, point: Point, problem: Problem) -> tuple[Linear, Weights]:
        weights = DenseWeights(dense_weight(point, problem), problem.bias)
        return lambda x: dense_linear(x, weights.weight, weights.bias), weights


register(Dense())
