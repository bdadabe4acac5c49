"""The bias that a head starts with: what is known of its labels before anything is learnt.

With ``L`` labels of which a row has a few, a head with zero bias predicts half of all labels for every row, and its first
steps, shared by all labels and rows, go into unlearning that: in 48 steps of AdamW (L = 5,000, two positives a row) the model
learns nothing else. A bias of log-odds starts it where that ends. Source: Lin et al., "Focal loss for dense object
detection", ICCV 2017, section 4.1, for one probability; here for each label its own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc.models.shards import local_rows

InitialBias = float | Tensor | None


def log_odds(prior: Any, num_labels: int) -> InitialBias:
    """``log(p / (1 - p))`` of each label's frequency ``p``: one number for all labels, or ``[L]``; None for no prior.

    Args:
        prior: frequencies ``[L]``, the share of rows in which each label is positive (tensor, array or list). A label that
            never occurs counts as half as frequent as the rarest that does, one that always occurs as missing half as
            often as the most frequent that does not. Or a number: the expected positives per row. None or "none".

    Raises:
        TypeError: another kind of object.
        ValueError: frequencies outside ``[0, 1]`` or of another number of labels; positives outside ``(0, L)``.
    """
    if prior is None or (isinstance(prior, str) and prior == "none"):
        return None
    if isinstance(prior, (int, float)) and not isinstance(prior, bool):
        if not 0 < prior < num_labels:
            raise ValueError(f"prior must lie in (0, {num_labels}) as the expected positives per row, got {prior}")
        return math.log(prior / (num_labels - prior))
    if isinstance(prior, (str, bytes)) or not hasattr(prior, "__len__"):
        raise TypeError(f"prior must be frequencies [L], a number of positives per row, 'none' or None, got {prior!r}")
    p = on_cpu(prior).to(torch.float64)
    if tuple(p.shape) != (num_labels,):
        raise ValueError(f"prior must hold a frequency for each of {num_labels} labels, got shape {list(p.shape)}")
    bad = ~((p >= 0) & (p <= 1))
    if bool(bad.any()):
        label = int(bad.nonzero()[0])
        raise ValueError(
            f"prior must hold frequencies in [0, 1] (counts divided by the number of rows), got {float(p[label])} for label "
            f"{label}"
        )
    return (_rarest_halved(p).log() - _rarest_halved(1 - p).log()).float()


def on_cpu(values: Any) -> Tensor:
    """Numbers in a tensor or anything that makes one, on the CPU whatever the default device is."""
    return values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def _rarest_halved(p: Tensor) -> Tensor:
    """Zeros become half the smallest positive number."""
    occurring = p[p > 0]
    if not len(occurring):
        raise ValueError("prior must leave something open: all labels' frequencies are 0, or all are 1")
    return torch.where(p > 0, p, occurring.min() / 2)


def bias_of_labels(bias: InitialBias, start: int, stop: int) -> InitialBias:
    """The part of labels ``[start, stop)``."""
    return bias[start:stop] if isinstance(bias, Tensor) else bias


def set_prior_(layer: Any, bias: InitialBias) -> None:
    """Makes ``bias`` what the layer's bias starts from, now and whenever the layer draws its parameters anew.

    Raises:
        ValueError: a prior for a layer without bias.
    """
    if bias is not None:
        if layer.bias is None:
            raise ValueError("prior sets the bias, but the layer has none (bias=False)")
        layer._initial_bias = bias
        fill_bias_(layer, bias)


@torch.no_grad()
def fill_bias_(layer: nn.Module, bias: InitialBias) -> None:
    """Writes the initial bias into a layer that has one, zero without a prior."""
    if isinstance(layer.bias, Tensor):
        own, first = local_rows(layer.bias)
        if isinstance(bias, Tensor):
            own.copy_(bias[first : first + len(own)])
        else:
            own.fill_(bias or 0.0)
