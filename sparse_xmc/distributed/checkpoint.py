"""Checkpoints of models with label-sharded heads, in the format of a run's checkpoints (``storage.checkpoint``).

Tensors are stored under the names and sizes of the whole model, so what N ranks saved is read by M, and a single
process with a ``FixedFanInLinear`` reads what a ``LabelShardedLinear`` saved and the reverse. Every file has a checksum.
Checkpoints of version 0.1 are read too (``old_checkpoint``).
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_xmc.distributed import old_checkpoint
from sparse_xmc.distributed.layout import Layout
from sparse_xmc.distributed.ranks import RankFailure, Ranks, device_types
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.ops._arguments import validate_indices
from sparse_xmc.storage.atomic import existing_folder
from sparse_xmc.storage.checkpoint import check_folder, read_folder, read_manifest, write_folder
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.tensor_file import Block, Shards

_DOCUMENT = "run"
_MODEL, _OPTIMIZERS = "model", "optimizers"
_STEP = re.compile(r"step-(\d{10})")


def save(
    folder: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Mapping[str, Optimizer] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes model, optimizers and ``extra`` (JSON, of rank 0) as one folder that appears complete or not at all.

    To be called on all ranks, which share the file system; the first one writes whole tensors, piece by piece.

    Raises:
        ArtefactError: the disk is full or not writable, on all ranks; what stood there before is untouched.
        FloatingPointError: a parameter or ``extra`` holds NaN or infinity, on all ranks; likewise.
    """
    layout = Layout(model)
    tensors: dict[str, dict[str, Tensor]] = {_MODEL: layout.model_state(), _OPTIMIZERS: {}}
    groups = {}
    for key, optimizer in (optimizers or {}).items():
        tensors[_OPTIMIZERS] |= layout.optimizer_state(key, optimizer)
        groups[key] = layout.group_settings(optimizer)
    documents = {_DOCUMENT: {"extra": dict(extra or {}), "param_groups": groups}}
    shards = Shards(_everyone(), layout.blocks)
    write_folder(os.fspath(folder), tensors, documents, shards, finite=partial(_is_parameter, layout))


def load(
    folder: str | os.PathLike[str], model: nn.Module, optimizers: Mapping[str, Optimizer] | None = None
) -> dict[str, Any]:
    """Reads what ``save`` wrote into ``model`` and ``optimizers``, in place, and returns its ``extra``.

    To be called on all ranks. Their number and the sizes of their blocks may differ from those that saved. Nothing is
    changed before everything is read and fits.

    Raises:
        FileNotFoundError: there is no complete checkpoint in ``folder``.
        ArtefactError: a file is missing, truncated or damaged, here or on another rank.
        ValueError: a tensor is missing or has another shape or dtype than the checkpoint's, an optimizer has other
            parameter groups, or indices are out of range or not distinct.
    """
    folder = existing_folder(os.fspath(folder))
    layout, everyone = Layout(model), _everyone()
    failure, change, digest = None, None, 0
    try:
        tensors, document, digest = _read(folder, layout, optimizers or {}, everyone)
        change = _fitted(folder, layout, optimizers or {}, tensors, document)
    except (ArtefactError, ValueError, TypeError, OSError) as error:
        failure = error
    said = everyone.gather_documents([failure and str(failure), digest], "comparison of a checkpoint")
    if failure is not None:
        raise failure
    for rank, (text, _) in enumerate(said):
        if text is not None:
            raise RankFailure(f"rank {rank} of {everyone.size} could not load {folder}: {text}")
    if any(one != said[0] for one in said):
        raise ArtefactError(f"the ranks see different files in {folder}")
    assert change is not None
    change()
    return document["extra"]


def load_latest(
    parent: str | os.PathLike[str],
    model: nn.Module,
    optimizers: Mapping[str, Optimizer] | None = None,
    report: Callable[[str], object] = warnings.warn,
) -> dict[str, Any] | None:
    """``load`` of the newest checkpoint in ``parent`` that is intact on all ranks; None where there is none.

    Damaged ones are reported and passed over, on all ranks alike.

    Raises:
        ArtefactError: there are checkpoints and every one is damaged.
        ValueError: as ``load``.
    """
    everyone, reasons = _everyone(), []
    seen = {step for steps in everyone.gather_documents(_steps(parent), "comparison of checkpoints") for step in steps}
    for step in sorted(seen, reverse=True):
        folder = step_folder(parent, step)
        said = everyone.gather_documents(_damage(folder), "comparison of checkpoints")
        wrong = next((f"rank {rank}: {text}" for rank, text in enumerate(said) if text is not None), None)
        if wrong is None:
            return load(folder, model, optimizers)
        reasons.append(wrong)
        report(f"checkpoint of step {step} passed over: {wrong}")
    if reasons:
        raise ArtefactError(f"no intact checkpoint in {os.fspath(parent)} ({'; '.join(reasons)})")
    return None


def latest(parent: str | os.PathLike[str]) -> str | None:
    """The newest intact checkpoint among the folders ``step-0000000123`` in ``parent``, as this process sees them.

    A damaged one is passed over with a warning. On several ranks ``load_latest`` has them go on from the same one.
    """
    for step in reversed(_steps(parent)):
        folder = step_folder(parent, step)
        reason = _damage(folder)
        if reason is None:
            return folder
        warnings.warn(f"checkpoint of step {step} passed over: {reason}", stacklevel=2)
    return None


def step_folder(parent: str | os.PathLike[str], step: int) -> str:
    """The folder of a step's checkpoint, which ``latest`` finds."""
    return os.path.join(os.fspath(parent), f"step-{step:010d}")


def _steps(parent: str | os.PathLike[str]) -> list[int]:
    if not os.path.isdir(parent):
        return []
    matches = (_STEP.fullmatch(name.removesuffix(".old")) for name in os.listdir(parent))  # .old: being replaced
    return sorted({int(match[1]) for match in matches if match})


def _damage(folder: str) -> str | None:
    """What is wrong with a checkpoint, None where nothing is."""
    folder = existing_folder(folder)
    try:
        if old_checkpoint.is_one(folder):
            old_checkpoint.Reader(folder)
        else:
            check_folder(folder)
    except ArtefactError as error:
        return str(error)
    return None


def _read(
    folder: str, layout: Layout, optimizers: Mapping[str, Optimizer], everyone: Ranks
) -> tuple[dict[str, Tensor], dict[str, Any], int]:
    """Tensors by name (of those that are spread this rank's block), the document, and what identifies them."""
    if not os.path.lexists(os.path.join(folder, f"{_DOCUMENT}.json")):
        raise FileNotFoundError(f"{folder} holds no complete checkpoint ({_DOCUMENT}.json is missing)")
    blocks = {**layout.blocks, **layout.optimizer_blocks(optimizers)}
    finite = partial(_is_parameter, layout)
    if old_checkpoint.is_one(folder):
        reader = old_checkpoint.Reader(folder)
        return reader.read(Shards(None, blocks), finite), reader.document, reader.digest
    tensors, documents = read_folder(folder, Shards(everyone, blocks), finite=finite, mapped=True)
    document = documents.get(_DOCUMENT)
    if not isinstance(document, dict) or not {"extra", "param_groups"} <= document.keys():
        raise ArtefactError(f"is damaged: {_DOCUMENT}.json does not hold extra and param_groups", folder)
    digest = read_manifest(folder).digest
    return {**tensors.get(_MODEL, {}), **tensors.get(_OPTIMIZERS, {})}, document, digest


def _fitted(
    folder: str,
    layout: Layout,
    optimizers: Mapping[str, Optimizer],
    tensors: dict[str, Tensor],
    document: Mapping[str, Any],
) -> Callable[[], None]:
    """What puts a checkpoint into model and optimizers, once it is known to fit."""
    state = layout.model_state()
    for name, tensor in state.items():
        found = tensors.get(name)
        if found is None:
            raise ValueError(f"{folder} holds no tensor {name}")
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            mine = layout.blocks.get(name)
            size = (
                [mine.total if isinstance(mine, Block) else tensor.shape[0], *tensor.shape[1:]] if tensor.ndim else []
            )
            stored = size if found.shape == tensor.shape else list(found.shape)
            raise ValueError(f"{folder}: {name} is {stored} {found.dtype}, the model's is {size} {tensor.dtype}")
    for prefix, layer in layout.layers():
        if isinstance(layer, FixedFanInLinear):
            try:
                validate_indices(tensors[f"model.{prefix}indices"], layer.in_features)
            except ValueError as error:
                raise ValueError(f"{folder}: {prefix.removesuffix('.')}: {error}") from None
    for key, optimizer in optimizers.items():
        layout.check_groups(key, optimizer, document["param_groups"])

    def change() -> None:
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(tensors.pop(name))  # what is mapped goes as it is taken over
        for key, optimizer in optimizers.items():
            layout.restore_optimizer_(key, optimizer, document["param_groups"][key], tensors)

    return change


def _is_parameter(layout: Layout, stem: str, name: str) -> bool:
    return stem == _MODEL and name in layout.parameters


def _everyone() -> Ranks:
    """All ranks, of whichever replicas; alone without a process group."""
    if not dist.is_initialized():
        return Ranks(None, torch.device("cpu"))
    on_cpu = "cpu" in device_types()
    return Ranks(dist.group.WORLD, torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device()))
