"""The gate before every figure: a provider must produce the right numbers, and all of the work of its mode.

It is run on a small instance of the same point (same dtype, device, group size, fan-in) against a dense float64
computation that shares no code with any provider.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bench.point import LEARNING_RATE, REWIRE_FRACTION, TOP_K, WORK, Point
from bench.problem import Problem
from bench.provider import Case, Provider, Unsupported
from bench.providers import get_provider, providers
from bench.weights import EllWeights, Weights

# Largest error as a share of the largest value: rounding of inputs and outputs, and of sums kept in the dtype itself.
TOLERANCE = {"float64": 1e-10, "float32": 2e-4, "float16": 8e-3, "bfloat16": 4e-2}


class Wrong(AssertionError):
    """A provider produced a wrong result; no time of it is reported."""


class UnequalWork(AssertionError):
    """A provider did not do the work of the mode; no time of it is reported."""


def small_instance(point: Point) -> Point:
    """A point that exercises the same kernels as ``point`` and fits a dense check."""
    D = min(point.D, 256)
    return dataclasses.replace(point, L=max(256, 2 * point.G), D=D, K=min(point.K, D), B=min(point.B, 32))


def check_provider(provider: Provider, point: Point, seed: int = 1) -> None:
    """Raises ``Wrong`` or ``UnequalWork`` if the provider is not worth timing at ``point``."""
    small = small_instance(point)
    problem = Problem(small, seed)
    case = provider.build(small, problem)
    _check_case(small, problem, case)


def check_all(names: Sequence[str], modes: Sequence[str], device: str) -> int:
    """Checks providers in modes (all where none is named), prints a line each; returns how many failed."""
    failures = 0
    chosen = [get_provider(name) for name in names] or list(providers().values())
    dtypes = ("float32",) if device == "cpu" else ("float32", "bfloat16")
    for provider, mode, dtype in itertools.product(chosen, modes or WORK, dtypes):
        point = Point(mode, 4096, G=32, dtype=dtype, device=device)
        reason = f"no {mode}" if mode not in provider.modes else provider.unsupported(point)
        verdict = f"unsupported: {reason}"
        if reason is None:
            try:
                check_provider(provider, point)
                verdict = "right"
            except Unsupported as error:
                verdict = f"unsupported: {error}"
            except Exception as error:  # a failing provider must not hide the others
                failures += 1
                verdict = f"FAILED: {type(error).__name__}: {error}"
        print(f"{provider.name:<26}{mode:<17}{dtype:<10}{verdict}", flush=True)
    return min(failures, 100)


def check_work(mode: str, produced: Sequence[str]) -> None:
    """Raises ``UnequalWork`` unless exactly the outputs of the mode were produced."""
    missing, extra = WORK[mode] - set(produced), set(produced) - WORK[mode]
    if missing or extra:
        raise UnequalWork(
            f"mode {mode} stands for {sorted(WORK[mode])}: missing {sorted(missing)}, extra {sorted(extra)}"
        )


def _check_case(point: Point, problem: Problem, case: Case) -> None:
    if point.mode == "rewire":
        assert isinstance(case.weights, EllWeights)
        _check_rewire(dataclasses.replace(point, G=case.weights.group_size), case)
        return
    truth = _truth(point, problem, case.weights)
    produced = case.run()
    check_work(point.mode, list(produced))
    if point.mode == "topk":
        scores, labels = produced["scores"], produced["labels"]
        assert isinstance(scores, Tensor) and isinstance(labels, Tensor)
        _check_topk(truth["y"][0], scores, labels, point)
        return
    for name, expected in truth.items():
        got = produced[name]
        tensors = list(got) if isinstance(got, (list, tuple)) else [got]
        if len(tensors) != len(expected):
            raise UnequalWork(f"{name}: {len(tensors)} tensors, expected {len(expected)}")
        for tensor, reference in zip(tensors, expected, strict=True):
            _compare(name, tensor, reference, TOLERANCE[point.dtype])


def _compare(name: str, got: Tensor, truth: Tensor, tolerance: float) -> None:
    got = got.detach()
    got = (got.to_dense() if got.layout != torch.strided else got).cpu().double()
    if got.shape != truth.shape:
        raise UnequalWork(f"{name}: shape {list(got.shape)}, expected {list(truth.shape)}")
    error = float((got - truth).abs().max())
    scale = float(truth.abs().max())
    if not error <= tolerance * scale:  # also catches NaN
        raise Wrong(f"{name}: error {error:.3g} where values reach {scale:.3g} (allowed {tolerance:g} of that)")


def _truth(point: Point, problem: Problem, weights: Weights) -> dict[str, list[Tensor]]:
    """What the mode has to produce, dense and in float64."""
    x, W = problem.x.detach().cpu().double(), weights.matrix()
    y = x @ W.t()
    bias = None if weights.bias is None else weights.bias.detach().cpu().double()
    if bias is not None:
        y = y + bias
    if point.mode in ("forward", "topk"):
        return {"y": [y]}
    if point.mode == "softmax":
        logp = y.log_softmax(1)
        dz = (logp.exp() - torch.nn.functional.one_hot(problem.classes.cpu(), y.shape[1])) / y.shape[0]
        loss = -logp.gather(1, problem.classes.cpu()[:, None]).mean()
        return {"loss": [loss], "dx": [dz @ W], "dw": weights.project(dz.t() @ x)}
    if point.mode == "step":
        return _step_truth(problem, weights, x, W, y, bias)
    dy = problem.dy.detach().cpu().double()
    available = {"y": [y], "dx": [dy @ W], "dw": weights.project(dy.t() @ x)}
    return {name: available[name] for name in WORK[point.mode]}


def _step_truth(
    problem: Problem, weights: Weights, x: Tensor, W: Tensor, y: Tensor, bias: Tensor | None
) -> dict[str, list[Tensor]]:
    B = x.shape[0]
    targets = problem.targets.to_dense().cpu().double()
    loss = (torch.nn.functional.softplus(y).sum() - (y * targets).sum()) / B
    dz = (torch.sigmoid(y) - targets) / B
    gradients = weights.project(dz.t() @ x)
    updated = [w.detach().cpu().double() - LEARNING_RATE * g for w, g in zip(weights.tensors(), gradients, strict=True)]
    if bias is not None:
        updated.append(bias - LEARNING_RATE * dz.sum(0))
    return {"loss": [loss], "dx": [dz @ W], "weight": updated}


def _check_topk(y: Tensor, scores: Tensor, labels: Tensor, point: Point) -> None:
    if list(scores.shape) != [point.B, TOP_K] or labels.shape != scores.shape:
        raise UnequalWork(f"topk: scores {list(scores.shape)}, labels {list(labels.shape)}")
    best = y.topk(TOP_K, dim=1).values
    tolerance = TOLERANCE[point.dtype]
    _compare("scores", scores, best, tolerance)
    _compare("scores of the labels", y.gather(1, labels.cpu().long()), best, tolerance)


def _check_rewire(point: Point, case: Case) -> None:
    """Fan-in constant and distinct, the right number replaced, the smallest ones, everything else bit-identical."""
    weight, indices = (t.detach().cpu().clone() for t in (case.weights.tensors()[0], case.weights.index_tensors()[0]))
    produced = case.run()
    check_work("rewire", list(produced))
    new_weight, new_indices = produced["weight"], produced["indices"]
    assert isinstance(new_weight, Tensor) and isinstance(new_indices, Tensor)
    before, after = indices.long(), new_indices.detach().cpu().long()
    new_weight = new_weight.detach().cpu()
    if after.shape != before.shape:
        raise UnequalWork(f"indices: shape {list(after.shape)}, expected {list(before.shape)}")
    if after.min() < 0 or after.max() >= point.D:
        raise Wrong("rewire: an index is out of range")
    if (after.sort(dim=1).values.diff(dim=1) == 0).any():
        raise Wrong("rewire: a row holds an index twice")
    changed = before != after
    expected = min(math.floor(REWIRE_FRACTION * point.K), point.D - point.K)
    if not (changed.sum(1) == expected).all():
        raise Wrong(f"rewire: {changed.sum(1).unique().tolist()} slots of a row changed, expected {expected}")
    per_label = changed.repeat_interleave(point.G, dim=0)[: point.L]
    if not torch.equal(new_weight[~per_label], weight[~per_label]):
        raise Wrong("rewire: a kept connection's weight changed")
    if new_weight[per_label].any():
        raise Wrong("rewire: a new connection's weight is not zero")
