"""Rewiring of a layer: its optimizers' state that belongs to single connections, and replicas that rewire alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sparse_xmc import ops
from sparse_xmc.models import replicas
from sparse_xmc.models.label_changes import check_own_weight, draw_seed
from sparse_xmc.ops._arguments import check_float

if TYPE_CHECKING:
    from sparse_xmc.models.linear import FixedFanInLinear

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
                    _check_plain(name, value, optimizer)
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


def _check_plain(name: str, value: Tensor, optimizer: object) -> None:
    """Raises ``TypeError`` for state that is packed into fewer bits: connections can't be taken out of it."""
    if type(value) not in (Tensor, torch.nn.Parameter) and type(value).__name__ != "DTensor":
        raise TypeError(
            f"{name} of {type(optimizer).__name__} is a {type(value).__name__}, and rewiring resets state in plain tensors "
            "only: train this weight with another optimizer"
        )


def rewire_layer_(
    layer: FixedFanInLinear,
    *,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    batch: ops.RegrowBatch | None = None,
    seed: int | None = None,
    **options: Any,
) -> Tensor:
    """``FixedFanInLinear.rewire_``, with all ``options`` of ``ops.prune_regrow_``: a part of a larger layer has two more."""
    check_own_weight(layer)
    check_float("weight", layer.weight)
    if optimizer is None:
        own: object = layer._optimizer
        optimizer = [own] if isinstance(own, torch.optim.Optimizer) else []
    named = optimizer if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
    state = connection_state(layer.weight, named) if named != [] else ConnectionState([], [])
    if batch is not None and batch.targets is not None and batch.bias is None:
        batch = replace(batch, bias=layer.bias)
    seed = draw_seed() if seed is None else seed
    replicating = replicas.active_groups(layer)
    if replicating:
        seed = replicas.shared_seed(seed, replicating, layer.indices.device)
    rewired = ops.prune_regrow_(
        layer.weight,
        layer.checked_indices(),
        layer.in_features,
        seed=seed,
        state=state.zero,
        mean_state=state.mean,
        group_size=layer.group_size,
        batch=batch,
        **options,
    )
    layer._connections_changed()  # a copy that rewires its own connections is no average of another's
    if replicating and batch is not None:  # the ranks' batches differ
        replicas.broadcast_([layer.weight, layer.indices, *state.zero, *state.mean], replicating)
        layer._mark_written("indices")
    return rewired
