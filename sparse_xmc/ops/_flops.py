"""Floating-point operations of the ops, for ``torch.utils.flop_counter.FlopCounterMode``; a multiply-add counts as two.

torch's module is imported by who counts, never here (it takes a third of a second): ``announce`` hands the formulas to it and
to the counters that are at work when an op first meets one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Shape = Sequence[int]


def _product(rows: Shape, connections: Shape, times: int = 1) -> int:
    """``times`` products of ``[B, ...]`` with a layer ``[L, K]``."""
    return 2 * times * rows[0] * connections[0] * connections[1]


def _linear(x: Shape, weight: Shape, *arguments: Any, **keywords: Any) -> int:
    return _product(x, weight)


def _backward_weight(dy: Shape, x: Shape, indices: Shape, *arguments: Any, **keywords: Any) -> int:
    return _product(dy, (dy[1], indices[1]))


def _head_gradients(x: Shape, weight: Shape, *arguments: Any, **keywords: Any) -> int:
    need_x, need_weight, _ = arguments[-1]
    return _product(x, weight, 1 + need_x + need_weight)


def _head_step(x: Shape, weight: Shape, *arguments: Any, **keywords: Any) -> int:
    _, need_x = arguments[-1]
    return _product(x, weight, 2 + need_x)


def _softmax_gradients(x: Shape, weight: Shape, *arguments: Any, **keywords: Any) -> int:
    need_x, need_weight = arguments[-4:-2]
    return _product(x, weight, 1 + need_x + need_weight)


_FORMULAS: dict[str, Callable[..., int]] = {
    "linear_forward": _linear,
    "linear_backward_input": _linear,
    "linear_backward_weight": _backward_weight,
    "head_loss": _linear,
    "head_gradients": _head_gradients,
    "head_step_": _head_step,
    "softmax_statistics": _linear,
    "softmax_gradients": _softmax_gradients,
    "topk": _linear,
}


def announce() -> None:
    """Tells torch's counters of operations what the ops cost, where there are any."""
    module: Any = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return
    counters = [getattr(mode, "counter", None) for mode in _get_current_dispatch_mode_stack()]
    registries = [counter.flop_registry for counter in counters if isinstance(counter, module.FlopCounterMode)]
    for name, formula in _FORMULAS.items():
        op = getattr(torch.ops.sparse_xmc, name)
        if op not in module.flop_registry:
            module.register_flop_formula(op)(formula)
        for registry in registries:
            registry.setdefault(op, module.flop_registry[op])
