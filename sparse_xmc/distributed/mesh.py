"""The process groups of a head's labels and of its replicas."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh


def process_groups(
    mesh: DeviceMesh | dist.ProcessGroup | None, label_dim: str | int, place: torch.device
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """Process groups of the label and the data dimension; None for a dimension of one rank.

    Raises:
        ValueError, TypeError: it is no mesh, or one of other dimensions or devices.
    """
    if mesh is None:
        return (dist.group.WORLD if dist.is_initialized() else None), None
    if isinstance(mesh, dist.ProcessGroup):
        return mesh, None
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"mesh must be a DeviceMesh or a ProcessGroup, got {type(mesh).__name__}")
    if mesh.device_type != place.type:
        raise ValueError(f"mesh must be of the head's devices: it is of {mesh.device_type}, device is {place}")
    if mesh.ndim == 1:
        return mesh.get_group(), None
    if mesh.ndim != 2:
        raise ValueError(f"mesh must have one dimension (labels) or two (data and labels), got {mesh.ndim}")
    names = mesh.mesh_dim_names or ()
    if isinstance(label_dim, str):
        if label_dim not in names:
            raise ValueError(f"label_dim must be one of the mesh's dimensions {list(names)}, got {label_dim!r}")
        label_dim = names.index(label_dim)
    if label_dim not in (0, 1):
        raise ValueError(f"label_dim must be 0 or 1 for a mesh of two dimensions, got {label_dim}")
    return mesh.get_group(label_dim), mesh.get_group(1 - label_dim)
