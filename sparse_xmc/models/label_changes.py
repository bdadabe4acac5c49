"""New labels at the end of a trained layer, and labels taken out of it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes

from sparse_xmc.models.prior import InitialBias, log_odds, on_cpu
from sparse_xmc.ops._arguments import as_int, check_input
from sparse_xmc.ops._csr import csr_matrix
from sparse_xmc.ops._target_forms import checked_csr


def draw_seed() -> int:
    """A seed from torch's global generator, whatever the default device is and whatever traces."""
    with _disable_current_modes():
        return int(torch.randint(1 << 62, (), device="cpu"))


def check_own_weight(layer: Any) -> None:
    """Raises ``RuntimeError`` if what writes to the layer's weight would write to a result: it is computed from others."""
    held = layer._parameters
    if "weight" not in held and (is_parametrized(layer, "weight") or any(name.startswith("weight_") for name in held)):
        raise RuntimeError(
            "the weight is computed from other parameters (parametrize, weight_norm, pruning), so nothing can be written to "
            "it: take that off first"
        )


class ChangeableLabels:
    """Mixed into layers whose labels are the rows of ``weight`` and ``bias``."""

    weight: Any
    bias: Any
    in_features: int
    out_features: int
    group_size: int = 1
    _initial_bias: InitialBias = None

    def _grow_connections_(self, num_labels: int, x: Any, targets: Tensor | None, seed: int) -> None:
        """Before the new labels are there; for layers that have connections."""

    def _keep_connections_(self, kept: Tensor) -> None:
        """Before the others are gone."""

    def _connections_changed(self) -> None:
        """Afterwards."""

    @torch.no_grad()
    def add_labels_(
        self,
        num_labels: int,
        x: Any = None,
        targets: Any = None,
        *,
        prior: Any = None,
        optimizer: torch.optim.Optimizer | None = None,
        seed: int | None = None,
    ) -> None:
        """Puts new labels behind those of a trained layer, whose rows stay as they are.

        Args:
            num_labels: how many.
            x, targets: rows ``[N, in_features]`` and which of the new labels they have, ``[N, num_labels]`` in any form of
                targets (``ops._target_forms``). The connections of the new labels start where their rows are, with zero
                weights; without them they are drawn. New labels that fill up the last group share its connections.
            prior: frequencies of the new labels, as in the constructor; None: those in ``targets``, else the smallest
                bias there is.
            optimizer: of torch, that holds the parameters, which are other tensors afterwards: it goes on with them.
            seed: of what is drawn; None: from torch's global generator.

        Raises:
            ValueError, TypeError: a number or a shape is not right, or a fused optimizer is attached.
        """
        check_own_weight(self)
        check_change(self)
        num_labels, targets = check_added(num_labels, x, targets, self.in_features)
        seed = draw_seed() if seed is None else as_int(seed)
        rows = {"weight": _added_weights(self.weight, num_labels, x is not None, seed)}
        if self.bias is not None:
            rows["bias"] = _added_bias(targets, num_labels, prior, self.bias)
        self._grow_connections_(num_labels, x, targets, seed)
        for name, values in rows.items():
            _extend_(self, name, values, optimizer)
        self.out_features += num_labels
        self._initial_bias = None
        self._connections_changed()

    @torch.no_grad()
    def remove_labels_(self, labels: Any, *, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Takes labels out; those behind move up, in their order.

        Args:
            labels: their numbers; with ``group_size`` above 1 whole groups.
            optimizer: as in ``add_labels_``.

        Raises:
            ValueError: a number is out of range, none or a part of a group would stay, or a fused optimizer is attached.
        """
        check_own_weight(self)
        check_change(self)
        kept = kept_labels(labels, self.out_features, self.group_size).to(self.weight.device)
        self._keep_connections_(kept)
        for name in ("weight", "bias"):
            if getattr(self, name) is not None:
                _replace_(self, name, getattr(self, name)[kept], optimizer, lambda key, state, group: state[kept])
        self.out_features = len(kept)
        self._initial_bias = None
        self._connections_changed()


def _added_bias(targets: Tensor | None, num_labels: int, prior: Any, present: Tensor) -> Tensor:
    """Biases of new labels: of ``prior``, else of their frequency in ``targets``, else the smallest there is."""
    if prior is None and targets is not None:
        columns = targets.col_indices().long()
        counts = torch.bincount(columns, minlength=num_labels).double()
        odds = torch.log((counts + 1) / (targets.shape[0] - counts + 1))
    elif prior is not None:
        odds = torch.as_tensor(log_odds(prior, num_labels), device="cpu").expand(num_labels)
    else:
        odds = present.min().expand(num_labels)
    return odds.to(present.device, present.dtype)


def last_columns(targets: Tensor, count: int) -> Tensor:
    """The last ``count`` columns of CSR targets."""
    first = targets.shape[1] - count
    if not first:
        return targets
    crow, columns = targets.crow_indices().long(), targets.col_indices().long()
    kept = columns >= first
    before = torch.cat([kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)])
    values = torch.ones(int(kept.sum()), device=crow.device)
    return csr_matrix(before[crow], columns[kept] - first, values, (targets.shape[0], count))


def _added_weights(weight: Tensor, num_labels: int, informed: bool, seed: int) -> Tensor:
    """Zero on connections that were chosen, where the first gradient decides; else as a new layer draws them."""
    weights = weight.new_zeros(num_labels, weight.shape[1])
    if not informed:
        bound = 1 / math.sqrt(weight.shape[1])
        weights.uniform_(-bound, bound, generator=torch.Generator(weights.device).manual_seed(seed))
    return weights


def _extend_(layer: Any, name: str, rows: Tensor, optimizer: Optimizer | None) -> None:
    """Puts rows behind those of a parameter; an optimizer's state of the new ones is that of its beginning."""

    def longer(key: str, state: Tensor, group: dict[str, Any]) -> Tensor:
        first = group.get("initial_accumulator_value", 0.0) if key == "sum" else 0.0
        return torch.cat([state, state.new_full((len(rows), *state.shape[1:]), first)])

    old = getattr(layer, name)
    _replace_(layer, name, torch.cat([old, rows.to(old.dtype)]), optimizer, longer)


def _replace_(
    layer: Any,
    name: str,
    values: Tensor,
    optimizer: Optimizer | None,
    resized: Callable[[str, Tensor, dict[str, Any]], Tensor],
) -> None:
    old = getattr(layer, name)
    new = nn.Parameter(values.detach().clone(), requires_grad=old.requires_grad)
    setattr(layer, name, new)
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        if any(parameter is old for parameter in group["params"]):
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
            state = optimizer.state.pop(old, {})
            optimizer.state[new] = {
                key: resized(key, value, group)
                if isinstance(value, Tensor) and value.ndim and len(value) == len(old)
                else value
                for key, value in state.items()
            }


_WRAPPED: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # copies of them are free


def mark_wrapped(model: nn.Module) -> None:
    """Something that keeps hold of the model's parameters has wrapped it: labels don't change any more."""
    _WRAPPED.update(layer for layer in model.modules() if isinstance(layer, ChangeableLabels))


def _is_cut(weight: Any) -> bool:
    return type(weight).__name__ == "DTensor"


def check_change(layer: Any) -> None:
    """Raises:
    ValueError: the layer's labels are those of something else: a fused optimizer's state, several ranks.
    RuntimeError: the layer is in a wrapper that knows its parameters.
    """
    held = layer in _WRAPPED or getattr(layer, "_replicas", None) is not None or _is_cut(layer.weight)
    if held and dist.is_initialized():
        raise RuntimeError(
            "DistributedDataParallel or FSDP holds the parameters of this layer and would not notice others: change labels "
            "before the model is wrapped, or those of copy.deepcopy(ddp.module)"
        )
    if getattr(layer, "_optimizer", None) is not None:
        raise ValueError(
            "a fused optimizer holds state of each label: fuse_optimizer(None), change labels, attach a new one"
        )
    if getattr(layer, "_holds_part", False):
        raise ValueError("other ranks hold other labels of the same head: change those of the whole layer")


def check_added(num_labels: int, x: Any, targets: Any, in_features: int) -> tuple[int, Tensor | None]:
    """The number of new labels as an integer of Python's, and which of them the rows have as a CSR matrix.

    Raises:
    ValueError, TypeError: the number of new labels or the rows that tell of them are not right.
    """
    num_labels = as_int(num_labels)
    if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1:
        raise ValueError(f"num_labels must be an integer of at least 1, got {num_labels!r}")
    if (x is None) != (targets is None):
        raise ValueError("x and targets come together: rows, and which new labels they have")
    if targets is None:
        return num_labels, None
    check_input(x, in_features)
    return num_labels, checked_csr("targets", targets, x.shape[0], num_labels, x.device)


def kept_labels(labels: Any, out_features: int, group_size: int = 1) -> Tensor:
    """The labels ``[L']`` that stay when ``labels`` go.

    Raises:
        ValueError: a label is out of range, none would stay, or a group would lose a part of its labels.
    """
    gone = on_cpu(labels).flatten()
    if not len(gone):
        return torch.arange(out_features, device="cpu")
    if gone.is_floating_point() or gone.dtype == torch.bool or gone.min() < 0 or gone.max() >= out_features:
        raise ValueError(f"labels must be integers in [0, {out_features}), got {gone[:8].tolist()}")
    stays = torch.ones(out_features, dtype=torch.bool, device="cpu")
    stays[gone.long()] = False
    kept = stays.nonzero().flatten()
    if not len(kept):
        raise ValueError(f"a layer keeps at least one label: all {out_features} would go")
    groups = torch.nn.functional.pad(stays, (0, -out_features % group_size), value=bool(stays[-1])).view(-1, group_size)
    broken = (groups.any(1) != groups.all(1)).nonzero().flatten()
    if len(broken) and group_size > 1:
        raise ValueError(
            f"labels go by whole groups of {group_size}, which share their connections: group {int(broken[0])} would keep "
            f"{int(groups[broken[0]].sum())} of them"
        )
    return kept
