"""An exponential moving average of a model whose connections change while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparse_xmc.models.checked_indices import CheckedIndices


@torch.no_grad()
def update_average_(average: nn.Module, model: nn.Module, decay: float) -> None:
    """``average = decay * average + (1 - decay) * model`` for all parameters; connections and buffers become the model's.

    Where a connection was replaced since the last call, its weight has no past: it is taken from the model as it is, so that
    no average mixes two connections.

    Args:
        average: begins as ``copy.deepcopy(model)``.
        model: what is trained, not wrapped (``ddp.module``).
        decay: in ``[0, 1)``.

    Raises:
        ValueError: another ``decay``, or models that are not built alike.

    Examples:
        >>> import copy
        >>> from sparse_xmc import FixedFanInLinear
        >>> from sparse_xmc.models import update_average_
        >>> model = FixedFanInLinear(64, 1000, fan_in=16, seed=0)
        >>> average = copy.deepcopy(model)
        >>> rewired = model.rewire_(fraction=0.2, seed=1)
        >>> update_average_(average, model, 0.999)
        >>> bool((average.indices == model.indices).all())
        True
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}")
    ours, theirs = dict(average.named_modules()), dict(model.named_modules())
    if {n: type(m) for n, m in ours.items()} != {n: type(m) for n, m in theirs.items()}:
        raise ValueError("average must be built like model: begin with copy.deepcopy(model), and pass both unwrapped")
    for name, layer in ours.items():
        source = theirs[name]
        kept = _kept_connections(layer, source)
        for key, parameter in layer._parameters.items():
            given = source._parameters[key]
            if parameter is None or given is None:
                continue
            mixed = parameter.lerp(given.to(parameter), 1 - decay)
            parameter.copy_(mixed if kept is None or key != "weight" else torch.where(kept, mixed, given.to(parameter)))
        for key, buffer in layer._buffers.items():
            if buffer is not None:
                buffer.copy_(source._buffers[key])
        if isinstance(layer, CheckedIndices):
            layer._mark_copied()


def _kept_connections(layer: nn.Module, source: nn.Module) -> Tensor | None:
    """Whether each weight ``[L, K]`` still belongs to the same connection; None for layers without connections."""
    if not isinstance(layer, CheckedIndices) or layer._parameters.get("weight") is None:
        return None
    before, after = layer.checked_indices(), source.checked_indices()  # type: ignore[operator]
    same = before.int() == after.to(before.device).int()
    weight = layer._parameters["weight"]
    assert weight is not None
    return same.repeat_interleave(layer.group_size, 0)[: len(weight)]  # type: ignore[arg-type]
