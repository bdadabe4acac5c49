"""Replaces a dense layer inside any model by a fixed fan-in one."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from sparse_xmc.models import pretrained
from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.prior import log_odds, set_prior_

ModuleT = TypeVar("ModuleT", bound=nn.Module)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def sparsify_(module: ModuleT, name: str, fan_in: int, *, group_size: int = 1, prior: Any = None) -> ModuleT:
    """Replaces the ``nn.Linear`` called ``name`` in ``module`` by a ``FixedFanInLinear``, in place.

    Every label keeps its ``fan_in`` connections of largest magnitude (labels that share connections: of largest mean
    magnitude) with their weights, and its bias. Dtype, device, training mode and ``requires_grad`` carry over. Call it
    before optimizers are made and before the model is wrapped (DDP, FSDP, ``torch.compile``).

    Hugging Face models save and load as before: their configuration tells ``from_pretrained``, where ``sparse_xmc.models`` was
    imported, which layers are sparse. In a ``SentenceTransformer`` the ``Dense`` module around the layer becomes a
    ``SparseDense``, which is saved and loaded as modules of other packages are (``trust_remote_code=True``).

    Args:
        module: the model.
        name: dotted name of the layer as in ``module.named_modules()``, e.g. ``"decoder.out"``.
        fan_in: ``K``, connections per label, at most the layer's ``in_features``.
        group_size: ``G``, number of neighbouring labels that share their connections.
        prior: for a model that is trained from scratch: the bias becomes the labels' log-odds, as in ``FixedFanInLinear``.
            None keeps the layer's bias. The weights are kept as they are in either case.

    Returns:
        ``module``.

    Raises:
        TypeError: the name belongs to something other than a plain ``nn.Linear``.
        ValueError: there is no such layer, its weight or bias is shared with another layer, it carries hooks, or
            ``fan_in`` exceeds its ``in_features``, or there is a ``prior`` but no bias.

    Examples:
        >>> import torch
        >>> from sparse_xmc import optim, sparsify_
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1000))
        >>> sparsify_(model, "2", fan_in=16, prior=2)[2]  # two positives per row
        FixedFanInLinear(in_features=64, out_features=1000, fan_in=16, ...)
        >>> optimizer = torch.optim.AdamW(optim.parameter_groups(model, lr=1e-3))
    """
    linear = _find(module, name)
    initial_bias = log_odds(prior, linear.out_features)
    _check_not_shared(module, name, linear)
    if any(getattr(linear, hooks) for hooks in _HOOKS):
        raise ValueError(
            f"{name!r} carries hooks, which would be lost: remove them before sparsify_ and add them again after"
        )
    layer = FixedFanInLinear.from_dense(linear, fan_in, group_size=group_size)
    set_prior_(layer, initial_bias)
    layer.train(linear.training)
    layer.weight.requires_grad_(linear.weight.requires_grad)
    if layer.bias is not None:
        layer.bias.requires_grad_(linear.bias.requires_grad)
    parent, _, attribute = name.rpartition(".")
    holder = module.get_submodule(parent)
    if parent and attribute == "linear" and _is_sentence_dense(holder):
        from sparse_xmc.models.sentence_dense import SparseDense

        above, _, place = parent.rpartition(".")
        setattr(module.get_submodule(above), place, SparseDense.of(holder, layer))
    else:
        setattr(holder, attribute, layer)
    pretrained.record(module, name, layer)
    return module


def _is_sentence_dense(holder: nn.Module) -> bool:
    return type(holder).__name__ == "Dense" and type(holder).__module__.startswith("sentence_transformers.")


def _find(module: nn.Module, name: str) -> nn.Linear:
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be the dotted name of a layer inside module, got {name!r}")
    layers = dict(module.named_modules(remove_duplicate=False))
    if name not in layers:
        linears = [other for other, layer in layers.items() if type(layer) is nn.Linear]
        widest = sorted(linears, key=lambda other: -layers[other].out_features)[:5]
        raise ValueError(f"there is no layer {name!r}; the widest nn.Linear layers are {widest}")
    if type(layers[name]) is not nn.Linear:
        raise TypeError(f"{name!r} must be a plain torch.nn.Linear, got {type(layers[name]).__name__}")
    return layers[name]


def _check_not_shared(module: nn.Module, name: str, linear: nn.Linear) -> None:
    """Raises if replacing the layer would untie a parameter, or leave the layer in use under a second name."""

    def storage(tensor: Tensor) -> object:
        return id(tensor) if tensor.is_meta else tensor.untyped_storage().data_ptr()

    own = {storage(parameter) for parameter in linear.parameters()}
    shared = [
        other
        for other, parameter in module.named_parameters(remove_duplicate=False)
        if storage(parameter) in own and other.rpartition(".")[0] != name
    ]
    if shared:
        raise ValueError(
            f"the parameters of {name!r} are shared with {shared}: untie them first "
            f"(for a Hugging Face model: config.tie_word_embeddings=False before it is made)"
        )
