"""Hugging Face models with sparse layers come back from ``from_pretrained`` as they were saved.

``sparsify_`` notes in the model's configuration which layers it replaced, so that ``config.json`` holds it. A model that is
built from such a configuration gets fixed fan-in layers in the place of its own while it is under construction, which is
before ``from_pretrained`` looks for their weights. ``sparse_xmc.models`` must have been imported by then.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from sparse_xmc.models.linear import FixedFanInLinear

ENTRY = "sparse_xmc"  # of a configuration: {dotted name of a layer: {"fan_in": K, "group_size": G}}


def register() -> None:
    """Makes models under construction follow their configuration's entry, for this process."""
    hook: Any = _follows_its_configuration  # torch's annotation leaves out that a hook may return another module
    register_module_module_registration_hook(hook)


def record(model: nn.Module, name: str, layer: FixedFanInLinear) -> None:
    """Notes the layer called ``name`` in the configuration of the outermost Hugging Face model around it, if there is one."""
    parts = name.split(".")
    for depth in range(len(parts)):
        config = _configuration(model.get_submodule(".".join(parts[:depth])))
        if config is not None:
            entry = {".".join(parts[depth:]): {"fan_in": layer.fan_in, "group_size": layer.group_size}}
            setattr(config, ENTRY, {**(getattr(config, ENTRY, None) or {}), **entry})
            return


def _configuration(model: nn.Module) -> Any:
    config = model.__dict__.get("config")
    return config if hasattr(config, "to_dict") and hasattr(model, "save_pretrained") else None


def _follows_its_configuration(parent: nn.Module, name: str, child: nn.Module | None) -> nn.Module | None:
    if child is None or "config" not in parent.__dict__ or name in parent._modules:
        return None
    layers = getattr(_configuration(parent), ENTRY, None) or {}
    for path, sizes in layers.items():
        if path == name:
            return _sparse(child, sizes)
        if path.startswith(f"{name}."):
            holder, _, attribute = path[len(name) + 1 :].rpartition(".")
            inner = child.get_submodule(holder)
            setattr(inner, attribute, _sparse(getattr(inner, attribute), sizes) or getattr(inner, attribute))
    return None


def _sparse(linear: nn.Module, sizes: dict[str, int]) -> FixedFanInLinear | None:
    if type(linear) is not nn.Linear:
        return None
    return FixedFanInLinear(
        *(linear.in_features, linear.out_features, sizes["fan_in"], linear.bias is not None),
        group_size=sizes["group_size"],
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
