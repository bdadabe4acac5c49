"""A model whose encoder every rank runs on the same rows; only what grows with the number of labels is spread."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparse_xmc.distributed.linear import LabelShardedLinear
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.models import FixedFanInLinear


def own_part(layer: nn.Module) -> tuple[Any, int]:
    """What this rank holds of a layer, and the first of its labels: all of a layer that is not spread."""
    return (layer.shard, layer.labels.start) if isinstance(layer, LabelShardedLinear) else (layer, 0)


@torch.no_grad()
def shard_model_(model: nn.Module, ranks: Ranks, seed: int) -> None:
    """Makes a model whose fixed fan-in layers are on the meta device one whose labels are spread over the ranks.

    Each rank makes its own labels of these layers, as a whole layer with this seed has them; the first rank's other
    parameters and buffers go to all ranks.

    Raises:
        ValueError: the model has no fixed fan-in layer.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, FixedFanInLinear)}
    if not layers:
        raise ValueError("the model has no fixed fan-in layer whose labels could be spread over the ranks")
    heads = {name: LabelShardedLinear._of_meta_layer(layer, ranks, seed) for name, layer in layers.items()}
    for name, head in heads.items():
        model.set_submodule(name, head)
    model.to(ranks.device)
    own = {id(tensor) for head in heads.values() for tensor in head.state_dict(keep_vars=True).values()}
    for tensor in model.state_dict(keep_vars=True).values():
        if id(tensor) not in own:
            sent = tensor.detach().int() if tensor.dtype == torch.uint16 else tensor.detach()
            tensor.copy_(ranks.copy_first_(sent, "copy of the first rank's model"))
