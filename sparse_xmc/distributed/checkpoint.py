"""Checkpoints of models with label-sharded heads through ``torch.distributed.checkpoint``.

Tensors are stored under the names and sizes of the whole model, so what N ranks saved is read by M, and a single
process with a ``FixedFanInLinear`` reads what a ``LabelShardedLinear`` saved and the reverse.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from sparse_xmc.distributed.label_block import LabelBlock
from sparse_xmc.distributed.linear import LabelShardedLinear
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.ops._arguments import num_index_rows, validate_indices
from sparse_xmc.storage.atomic import existing_folder, flush, replace_folder

_DOCUMENT = "run.json"
_STEP = re.compile(r"step-(\d{10})")


def save(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Mapping[str, Optimizer] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes model, optimizers and ``extra`` (JSON, of rank 0) as one folder that appears complete or not at all.

    To be called on all ranks, which share the file system; each writes what it holds.
    """
    folder = os.fspath(folder)
    layout = _Layout(model)
    state = layout.model_state()
    groups = {}
    for key, optimizer in (optimizers or {}).items():
        state.update(layout.optimizer_state(key, optimizer))
        groups[key] = layout.group_settings(optimizer)
    partial = f"{folder}.partial"
    if _is_first():
        shutil.rmtree(partial, ignore_errors=True)
    _meet()
    with _quiet_alone():
        dcp.save(state, checkpoint_id=partial)
    if _is_first():
        with open(os.path.join(partial, _DOCUMENT), "w", encoding="utf-8") as file:
            json.dump({"extra": dict(extra or {}), "param_groups": groups}, file)
        flush(os.path.join(partial, _DOCUMENT))
        flush(partial)
        replace_folder(partial, folder)
    _meet()


def load(
    folder: str | os.PathLike[str], model: nn.Module, optimizers: Mapping[str, Optimizer] | None = None
) -> dict[str, Any]:
    """Reads what ``save`` wrote into ``model`` and ``optimizers``, in place, and returns its ``extra``.

    The number of ranks and the sizes of their blocks may differ from those that saved.

    Raises:
        FileNotFoundError: there is no complete checkpoint in ``folder``.
        ValueError: a tensor is missing or has another shape or dtype than the checkpoint's, an optimizer has other
            parameter groups, or indices are out of range or not distinct.
    """
    folder = existing_folder(os.fspath(folder))
    if not os.path.exists(os.path.join(folder, _DOCUMENT)):
        raise FileNotFoundError(f"{folder} holds no complete checkpoint ({_DOCUMENT} is missing)")
    with open(os.path.join(folder, _DOCUMENT), encoding="utf-8") as file:
        document = json.load(file)
    stored = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    layout = _Layout(model)
    state = layout.model_state()
    for key, optimizer in (optimizers or {}).items():
        layout.restore_groups(key, optimizer, document["param_groups"])
        state.update(layout.empty_optimizer_state(key, optimizer, stored))
    _check_shapes(state, stored, folder)
    with _quiet_alone():
        dcp.load(dict(state), checkpoint_id=folder)
    for name, layer in model.named_modules():
        if isinstance(layer, FixedFanInLinear):
            try:
                validate_indices(layer.indices, layer.in_features)
            except ValueError as error:
                raise ValueError(f"{folder}: {name}: {error}") from None
    return document["extra"]


def latest(parent: str | os.PathLike[str]) -> str | None:
    """The newest complete checkpoint among the folders ``step-0000000123`` in ``parent``."""
    if not os.path.isdir(parent):
        return None
    names = {name.removesuffix(".old") for name in os.listdir(parent)}  # .old: while it was being replaced
    folders = [os.path.join(os.fspath(parent), name) for name in sorted(names) if _STEP.fullmatch(name)]
    complete = [path for path in folders if os.path.exists(os.path.join(existing_folder(path), _DOCUMENT))]
    return complete[-1] if complete else None


def step_folder(parent: str | os.PathLike[str], step: int) -> str:
    """The folder of a step's checkpoint, which ``latest`` finds."""
    return os.path.join(os.fspath(parent), f"step-{step:010d}")


class _Layout:
    """Names and places of a model's tensors in the whole model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.heads = {name: layer for name, layer in model.named_modules() if isinstance(layer, LabelShardedLinear)}

    def _place(self, name: str) -> tuple[str, LabelShardedLinear | None]:
        """Name of a tensor in the whole model, and the sharded head that it belongs to."""
        for prefix, head in self.heads.items():
            shard = f"{prefix}.shard." if prefix else "shard."
            if name.startswith(shard):
                return (f"{prefix}." if prefix else "") + name[len(shard) :], head
        return name, None

    def model_state(self) -> dict[str, Tensor]:
        state = {}
        for name, tensor in self.model.state_dict().items():
            whole, head = self._place(name)
            state[f"model.{whole}"] = _block(tensor, head, rows_are_groups=name.endswith("shard.indices"))
        return state

    def _parameter_names(self, optimizer: Optimizer) -> list[tuple[str, LabelShardedLinear | None, Tensor]]:
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        found = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in names:
                    raise ValueError(f"an optimizer holds a parameter {list(parameter.shape)} that is not the model's")
                found.append((*self._place(names[id(parameter)]), parameter))
        return found

    def optimizer_state(self, key: str, optimizer: Optimizer) -> dict[str, Tensor]:
        state = {}
        for name, head, parameter in self._parameter_names(optimizer):
            for kind, value in optimizer.state.get(parameter, {}).items():
                if value is None:
                    continue
                tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                cut = head if tensor.ndim and len(tensor) == len(parameter) else None
                state[f"optimizer.{key}.{name}/{kind}"] = _block(tensor, cut)
        return state

    def empty_optimizer_state(self, key: str, optimizer: Optimizer, stored: Mapping[str, Any]) -> dict[str, Tensor]:
        """Makes room in the optimizer for every stored tensor of its parameters."""
        state = {}
        for name, head, parameter in self._parameter_names(optimizer):
            prefix = f"optimizer.{key}.{name}/"
            optimizer.state.pop(parameter, None)
            for entry, data in stored.items():
                if not entry.startswith(prefix) or not isinstance(data, TensorStorageMetadata):
                    continue
                size = list(data.size)
                cut = head if size and size[0] == (head.out_features if head else -1) else None
                if cut is not None:
                    size[0] = len(cut.labels)
                device = parameter.device if size else "cpu"
                tensor = torch.empty(size, dtype=data.properties.dtype, device=device)
                optimizer.state[parameter][entry[len(prefix) :]] = tensor
                state[entry] = _block(tensor, cut)
        return state

    def group_settings(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        names = iter(name for name, _, _ in self._parameter_names(optimizer))
        settings = []
        for group in optimizer.param_groups:
            plain = {key: _plain(value) for key, value in group.items() if key != "params"}
            settings.append({**plain, "params": [next(names) for _ in group["params"]]})
        return settings

    def restore_groups(self, key: str, optimizer: Optimizer, stored: Mapping[str, Any]) -> None:
        mine = self.group_settings(optimizer)
        if key not in stored:
            raise ValueError(f"the checkpoint holds no optimizer {key!r}, only {sorted(stored)}")
        if [group["params"] for group in mine] != [group["params"] for group in stored[key]]:
            raise ValueError(f"optimizer {key!r} has other parameter groups than the checkpoint's")
        for group, saved in zip(optimizer.param_groups, stored[key], strict=True):
            for name, value in saved.items():
                if name != "params":
                    group[name] = tuple(value) if isinstance(group.get(name), tuple) else value


def _block(tensor: Tensor, head: LabelShardedLinear | None, *, rows_are_groups: bool = False) -> Tensor:
    if head is None:
        return tensor
    per_row = head.group_size if rows_are_groups else 1
    return LabelBlock.of(tensor, head.labels.start // per_row, num_index_rows(head.out_features, per_row))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _check_shapes(state: Mapping[str, Tensor], stored: Mapping[str, Any], folder: str) -> None:
    for name, tensor in state.items():
        entry = stored.get(name)
        if not isinstance(entry, TensorStorageMetadata):
            raise ValueError(f"{folder} holds no tensor {name}")
        size = tensor.size()
        if entry.size != size or entry.properties.dtype != tensor.dtype:
            raise ValueError(
                f"{folder}: {name} is {list(entry.size)} {entry.properties.dtype}, "
                f"the model's is {list(size)} {tensor.dtype}"
            )


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _meet() -> None:
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """torch.distributed.checkpoint warns when there is only one process, which here is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
