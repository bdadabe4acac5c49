"""Layers under ``DistributedDataParallel``: every replica reads the connections of rank 0.

DDP broadcasts a model's buffers from rank 0 when it is made and again at every forward. Neither gloo nor NCCL knows 16-bit
integers or 8-bit floats, and connections change only when they are rewired. So the buffers of these layers are taken out of
that traffic and sent as bytes: once when DDP is made, and after what the ranks can't compute alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from sparse_xmc.models.checked_indices import CheckedIndices


def register() -> None:
    """Makes DDP's constructor call ``_join`` with the model that it wraps, for this process."""
    if dist.is_available():
        register_module_module_registration_hook(_joins_ddp)


def _joins_ddp(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if name == "module" and isinstance(parent, DistributedDataParallel) and child is not None:
        _join(parent, child)


def _join(ddp: Any, model: nn.Module) -> None:
    left_out, group = ddp.parameters_to_ignore, ddp.process_group
    prefixes = {f"{prefix}." if prefix else "": layer for prefix, layer in model.named_modules()}
    layers = {
        prefix: layer
        for prefix, layer in prefixes.items()
        if isinstance(layer, CheckedIndices) and f"{prefix}indices" not in left_out
    }
    if not layers:
        return
    for prefix, layer in layers.items():
        layer._check_replicable(prefix.rstrip(".") or "the model")
    _check_alike(layers, group)
    for prefix, layer in layers.items():
        layer._replicas = group
        buffers = {name: buffer for name, buffer in layer._buffers.items() if buffer is not None}
        if not layer.indices.is_meta:
            broadcast_(buffers.values(), group)
            layer._mark_copied()
        left_out.update(f"{prefix}{name}" for name in buffers)


def _check_alike(layers: dict[str, CheckedIndices], group: dist.ProcessGroup) -> None:
    """Raises on every rank if they differ on any: sent as they are, the connections would stop the group."""
    place = next(iter(layers.values())).indices.device
    if place.type == "meta":
        return
    sizes = [(name, tuple(layer.indices.shape), layer.in_features) for name, layer in sorted(layers.items())]
    digest = torch.tensor([_stable_hash(repr(sizes))], device=place)
    digests = [torch.empty_like(digest) for _ in range(dist.get_world_size(group))]
    dist.all_gather(digests, digest, group=group)
    if len({int(each) for each in digests}) > 1:
        raise ValueError(f"the ranks' models must be alike under DistributedDataParallel, here: {sizes}")


def _stable_hash(text: str) -> int:
    """The same number in every process, which ``hash`` of a string is not."""
    return int.from_bytes(text.encode(), "little") % ((1 << 61) - 1)


def active_group(layer: CheckedIndices) -> dist.ProcessGroup | None:
    """The process group whose ranks hold replicas of the layer, while there is one."""
    group = layer._replicas
    return group if group is not None and dist.is_initialized() and dist.get_world_size(group) > 1 else None


def broadcast_(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    """Rank 0's values of tensors of any dtype, in place."""
    source = dist.get_global_rank(group, 0)
    for tensor in tensors:
        octets = tensor.detach().contiguous().view(torch.uint8)
        dist.broadcast(octets, source, group)
        if octets.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(octets.view(tensor.dtype).view(tensor.shape))


def shared_seed(seed: int, group: dist.ProcessGroup, device: torch.device) -> int:
    """Rank 0's seed."""
    value = torch.tensor([seed], device=device)
    dist.broadcast(value, dist.get_global_rank(group, 0), group)
    return int(value)
