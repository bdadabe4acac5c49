"""Ops that this version defines only for programs exported by earlier ones: their names and schemas, on today's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import compute_dtype
from sparse_xmc.ops._contract import Layer, Needed, Objective, Positives, Scaling
from sparse_xmc.ops._dispatch import define, direct
from sparse_xmc.ops.loss import Problem, empty_gradients, gradients_of, loss_of
from sparse_xmc.ops.sparse_input import sparse_loss_fake, sparse_loss_gradients
from sparse_xmc.ops.step import updated
from sparse_xmc.ops.update import Update

_HEAD = "Tensor x, Tensor weight, Tensor indices, Tensor? bias, Tensor labels, Tensor rows, str loss, int group_size"


def _problem(arguments: tuple[Any, ...]) -> Problem:
    x, weight, indices, bias, labels, rows, loss, group_size = arguments
    positives = Positives(labels, rows, x.shape[0], weight.shape[0])
    eager = direct(x, weight, indices, labels)
    return Problem(x, Layer(weight, indices, bias, group_size), positives, Objective(loss), 1.0, eager)


def _loss_forward(*arguments: Any) -> Tensor:
    return loss_of(_problem(arguments))


def _loss_gradients(*arguments: Any) -> tuple[Tensor, ...]:
    *head, scale, need_x, need_weight, need_bias = arguments
    gradients = gradients_of(_problem(tuple(head)), scale, Needed(need_x, need_weight, need_bias))
    return tuple(head[0].new_empty(0) if g is None else g for g in gradients)


def _loss_step_(*arguments: Any) -> tuple[Tensor, Tensor]:
    problem, (dx_scale, dw_scale, *buffers) = _problem(arguments[:8]), arguments[8:14]
    lr, momentum, weight_decay, decay, gain, correction, eps, stochastic, seed, step, need_loss, need_x = arguments[14:]
    empty = problem.x.new_empty(0)
    # its two scales may be any two numbers: a sweep for each
    dx = gradients_of(problem, dx_scale, Needed(True, False, False))[0] if need_x else None
    numbers = (lr, momentum, weight_decay, decay, gain, eps)
    update = Update._make((*buffers, *numbers, None, correction, stochastic, seed, step, False))
    total, _ = updated(problem, Scaling(1.0, dw_scale), update, need_loss, False)
    return empty if total is None else total, empty if dx is None else dx


def _step_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    need_loss, need_x = arguments[-2:]
    total = x.new_empty((), dtype=compute_dtype(x.dtype)) if need_loss else x.new_empty(0)
    return total, torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0)


def _sparse_input_loss(*arguments: Any) -> tuple[Tensor, ...]:
    *rows_and_layer, loss, group_size, gradients = arguments
    return sparse_loss_gradients(*rows_and_layer, None, None, loss, (0.0, 0.0, 0.0), group_size, gradients)


define(
    "sparse_input_loss(Tensor crow, Tensor col, Tensor values, SymInt in_features, Tensor weight, Tensor indices,"
    " Tensor? bias, Tensor labels, Tensor rows, str loss, SymInt group_size, bool gradients) -> (Tensor, Tensor, Tensor)",
    _sparse_input_loss,
    sparse_loss_fake,
)
define(
    f"loss_forward({_HEAD}) -> Tensor",
    _loss_forward,
    lambda x, *arguments: x.new_empty((), dtype=compute_dtype(x.dtype)),
)
define(
    f"loss_gradients({_HEAD}, Tensor scale, bool need_x, bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor)",
    _loss_gradients,
    lambda x, weight, indices, bias, *arguments: empty_gradients(x, weight, bias, arguments[-3:]),
)
define(
    "loss_step_("
    + _HEAD.replace("Tensor weight", "Tensor(a!) weight").replace("Tensor? bias", "Tensor(b!)? bias")
    + ", Tensor dx_scale, Tensor dw_scale, Tensor(c!)? momentum_buffer, Tensor(d!)? second_moment,"
    " Tensor(e!)? bias_momentum_buffer, Tensor(f!)? bias_second_moment, float lr, float momentum, float weight_decay,"
    " float decay, float gain, Tensor? correction, float eps, bool stochastic, int seed, int step, bool need_loss,"
    " bool need_x) -> (Tensor, Tensor)",
    _loss_step_,
    _step_fake,
)
