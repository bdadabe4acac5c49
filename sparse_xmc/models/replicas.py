"""Layers whose replicas stand on several ranks: every replica reads the connections of rank 0.

``DistributedDataParallel`` broadcasts a model's buffers from rank 0 when it is made and again at every forward; neither gloo
nor NCCL knows 16-bit integers or 8-bit floats, and connections change only when they are rewired. Fully sharded data
parallelism cuts parameters and leaves every rank its own buffers. So these layers' buffers are sent as bytes: once when a
model is wrapped, and after what the ranks can't compute alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

from sparse_xmc.models.checked_indices import CheckedIndices, Groups
from sparse_xmc.models.label_changes import mark_wrapped


def register() -> None:
    """Makes the constructors of DDP and FSDP1 call ``_join`` with the model that they wrap, for this process; layers
    themselves see to it when ``fully_shard`` cuts them."""
    CheckedIndices._join_mesh = _join_mesh
    if dist.is_available():
        register_module_module_registration_hook(_joins)


def _joins(parent: nn.Module, name: str, child: nn.Module | None) -> None:
    if child is None:
        return
    if name == "module" and isinstance(parent, DistributedDataParallel):
        _join_ddp(parent, child)
    elif name == "_fsdp_wrapped_module" and type(parent).__name__ == "FullyShardedDataParallel":
        _join_fsdp1(parent, child)


def _join_ddp(ddp: Any, model: nn.Module) -> None:
    mark_wrapped(model)
    left_out = ddp.parameters_to_ignore
    layers = {prefix: layer for prefix, layer in _layers_of(model).items() if f"{prefix}indices" not in left_out}
    _join(layers, (ddp.process_group,))
    for prefix, layer in layers.items():
        left_out.update(f"{prefix}{name}" for name, buffer in layer._buffers.items() if buffer is not None)


def _join_fsdp1(fsdp: Any, model: nn.Module) -> None:
    mark_wrapped(model)
    layers = {
        prefix: layer
        for prefix, layer in _layers_of(model).items()
        if layer not in fsdp._ignored_modules and layer._replicas is None
    }
    between = fsdp.__dict__.get("_inter_node_pg")
    _join(layers, (fsdp.process_group,) if between is None else (fsdp.process_group, between))


def _join_mesh(layer: CheckedIndices, groups: Groups) -> None:
    """Makes a layer whose parameters were cut over these groups a replica, unless it is one already."""
    if layer._replicas is None:
        _join({"the layer.": layer}, groups)


def _layers_of(model: nn.Module) -> dict[str, CheckedIndices]:
    """By the prefix of their tensors' names."""
    prefixes = {f"{prefix}." if prefix else "": layer for prefix, layer in model.named_modules()}
    return {prefix: layer for prefix, layer in prefixes.items() if isinstance(layer, CheckedIndices)}


def _join(layers: dict[str, CheckedIndices], groups: Groups) -> None:
    for prefix, layer in layers.items():
        layer._check_replicable(prefix.rstrip(".") or "the model")
    if not layers:
        return
    for group in groups:
        _check_alike(layers, group)
    for layer in layers.values():
        layer._replicas = groups
        if not layer.indices.is_meta:
            broadcast_((buffer for buffer in layer._buffers.values() if buffer is not None), groups)
            layer._mark_copied()


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


def active_groups(layer: CheckedIndices) -> Groups:
    """The process groups over whose ranks replicas of the layer are spread, while there are any."""
    if layer._replicas is None or not dist.is_initialized():
        return ()
    return tuple(group for group in layer._replicas if dist.get_world_size(group) > 1)


def broadcast_(tensors: Iterable[Tensor], groups: Sequence[dist.ProcessGroup]) -> None:
    """The first rank's values of tensors of any dtype, in place."""
    for tensor in tensors:
        octets = tensor.detach().contiguous().view(torch.uint8)
        for group in groups:
            dist.broadcast(octets, dist.get_global_rank(group, 0), group)
        if octets.data_ptr() != tensor.data_ptr():
            tensor.detach().copy_(octets.view(tensor.dtype).view(tensor.shape))


def shared_seed(seed: int, groups: Sequence[dist.ProcessGroup], device: torch.device) -> int:
    """The first rank's seed."""
    value = torch.tensor([seed], device=device)
    broadcast_([value], groups)
    return int(value)
