"""Learning rates of layers with few connections from the rate that suits the dense model.

A step of an adaptive optimizer moves every weight by about the rate ``lr``, so that a logit moves by ``lr * sum of |x_k|``
over the features that the label reads: with ``K`` of ``D`` features by ``K / D`` of what it moves in a dense layer. A step of
SGD moves weight ``k`` by ``lr * dz * x_k`` and the logit by ``lr * dz * sum of x_k^2``: the same share. A rate of
``lr * D / K`` for the weights therefore moves the logits, and with them the function, as ``lr`` moves those of the dense
layer; biases and all other layers keep ``lr``. This is the sparse maximal update parametrisation for one layer whose width
stays and whose density is ``K / D``; its second rule, an initial variance of ``1 / (D * density) = 1 / K`` times a constant,
is what ``FixedFanInLinear`` draws. Decoupled weight decay shrinks a weight by ``lr * weight_decay`` per step, which the
groups keep as it is by dividing the decay by the same factor.

For SGD the derivation looks at the head alone. What reaches the layers before it grows with the head's weights, which SGD,
unlike Adam, passes on to their steps; measured over a whole epoch, ``lr * (D / K) ** 0.5`` (``power=0.5``) kept the best rate
where the dense model has it, and ``lr * D / K`` moved it down by two to four.

Source: Dey, Bergsma, Hestness, "Sparse maximal update parameterization: a holistic approach to sparse training dynamics",
NeurIPS 2024 (arXiv 2405.15743), section 3; Yang et al., "Tensor programs V", 2022. What it holds for and how well was
measured: ``reports/learning_rate.md``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.sparse_input import SparseInputLinear


def rate_multiplier(layer: nn.Module, *, power: float = 1.0) -> float:
    """``(D / K) ** power``: what the rate of the dense layer is multiplied by for the weights of a fixed fan-in layer.

    1 for other layers, and for ``SparseInputLinear``, whose terms are chosen by the data and whose dense counterpart reads
    the few terms of a row, not all of ``D``. For fused optimizers, which ``parameter_groups`` leaves out:
    ``head.fuse_optimizer(FusedAdam(lr * rate_multiplier(head)))``.

    Examples:
        >>> from sparse_xmc import FixedFanInLinear
        >>> from sparse_xmc.optim import rate_multiplier
        >>> rate_multiplier(FixedFanInLinear(768, 1000, fan_in=32))
        24.0
    """
    if isinstance(layer, FixedFanInLinear) and not isinstance(layer, SparseInputLinear):
        return (layer.in_features / layer.fan_in) ** power
    return 1.0


def parameter_groups(
    model: nn.Module, lr: float, *, weight_decay: float | None = None, power: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer of ``torch.optim``, so that a rate tuned for the dense model serves the sparse one.

    Weights of fixed fan-in layers (inside other layers too) get ``lr * D / K`` and, if a weight decay is given,
    ``weight_decay * K / D``; everything else, their biases included, gets ``lr`` and ``weight_decay``. The first group is
    that of everything else. Parameters that need no gradient and those that a fused optimizer updates are left out.

    Args:
        model: a module with fixed fan-in layers, or such a layer.
        lr: rate of the dense model.
        weight_decay: of the dense model, decoupled as in AdamW. None leaves it to the optimizer, whose default then acts
            ``D / K`` times as strongly on the sparse weights.
        power: of ``D / K``: 1 for adaptive optimizers, 0.5 for SGD.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: negative numbers, no parameter is left, or the weight of a fixed fan-in layer is no parameter.

    Examples:
        >>> import torch
        >>> from sparse_xmc import sparsify_
        >>> from sparse_xmc.optim import parameter_groups
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1000))
        >>> model = sparsify_(model, "2", fan_in=16, prior=2)
        >>> groups = parameter_groups(model, lr=1e-3, weight_decay=0.01)
        >>> [group["lr"] for group in groups]
        [0.001, 0.004]
        >>> optimizer = torch.optim.AdamW(groups)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, whose layers tell the rates, got {type(model).__name__}")
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("power", power)):
        if value is not None and not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    multipliers: dict[Tensor, float] = {}
    fused: set[Tensor] = set()
    for layer in model.modules():
        if isinstance(layer, FixedFanInLinear):
            multiplier = rate_multiplier(layer, power=power)
            if multiplier != 1 and "weight" not in layer._parameters:
                raise ValueError(
                    f"the weight of a {type(layer).__name__} is computed from other parameters (parametrized, pruned, "
                    f"flattened), whose rates are yours to set: lr * {multiplier:g} is that of the weight itself"
                )
            multipliers[layer.weight] = multiplier
            if layer._optimizer is not None:
                fused.update(layer.parameters())
    by_multiplier: dict[float, list[Tensor]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad and parameter not in fused:
            by_multiplier.setdefault(multipliers.get(parameter, 1.0), []).append(parameter)
    if not by_multiplier:
        raise ValueError("model has no parameters that need a gradient and are not updated by a fused optimizer")
    groups = []
    for multiplier, parameters in sorted(by_multiplier.items(), key=lambda item: (item[0] != 1.0, item[0])):
        group: dict[str, Any] = {"params": parameters, "lr": lr * multiplier}
        if weight_decay is not None:
            group["weight_decay"] = weight_decay / multiplier
        groups.append(group)
    return groups
