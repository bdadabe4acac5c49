"""Optimizer state that belongs to single connections, and what becomes of it when a connection is replaced."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

# accumulators of squared gradients and updates in torch.optim, which a step is divided by, and Rprop's step itself
_SCALES = frozenset(
    {"exp_avg_sq", "max_exp_avg_sq", "sum", "square_avg", "acc_delta", "exp_inf", "second_moment", "step_size"}
)


class ConnectionState(NamedTuple):
    """State tensors of weight's shape: those that restart at zero and those that restart at their label's mean.

    Momenta and gradients of a dropped connection say nothing about its successor: zero. Squared gradients do better with
    the label's mean. Adam counts its steps per tensor, so at step 1000 its bias correction is long over, and with v = 0 a
    first gradient g would move the new weight by lr * 0.1 g / sqrt(0.001 g^2) = 3.2 lr, whatever the size of g. With v at
    the label's mean the first step is about 0.1 lr and grows as the momentum does, as it did for the others; the label's
    gradients at its inputs share the factor dL/dlogit, so their mean square is a fair guess. The same holds for Adagrad,
    whose zero would give the new connection the learning rate of the first step of the run.
    """

    zero: list[Tensor]
    mean: list[Tensor]


def connection_state(
    weight: Tensor, optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer]
) -> ConnectionState:
    """Finds the state of ``weight`` in optimizers: anything with ``param_groups`` and ``state`` as in ``torch.optim``.

    Raises:
        TypeError: something is not an optimizer.
        ValueError: none of the optimizers holds ``weight``, or its gradient is sparse.
    """
    several = [optimizers] if hasattr(optimizers, "param_groups") else list(optimizers)  # type: ignore[arg-type]
    found, state = False, ConnectionState([], [])
    for optimizer in several:
        if not (hasattr(optimizer, "param_groups") and hasattr(optimizer, "state")):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or several, got {type(optimizer).__name__}")
        if any(parameter is weight for group in optimizer.param_groups for parameter in group["params"]):
            found = True
            for name, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    (state.mean if name in _SCALES else state.zero).append(value)
    if not found:
        raise ValueError(f"optimizer does not hold this layer's weight {list(weight.shape)}")
    if weight.grad is not None and weight.grad.is_sparse:
        raise ValueError(
            "the weight has a sparse gradient, which connections can't be taken out of: call zero_grad() first"
        )
    if weight.grad is not None:
        state.zero.append(weight.grad)
    return state
