"""Training under ``torchrun``: every rank reads the same data and runs the same encoder; labels are spread over the ranks.

The result is that of one process; a rank's share of the head, its gradients and optimizer state is ``1 / ranks``. The
first rank owns the run's folder, every other works in ``rank-N`` inside it, where its checkpoints lie.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import shutil
from collections.abc import Iterator

import torch
import torch.distributed as dist

from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.restarts import init_process_group
from sparse_xmc.distributed.shared_rows import shard_model_, whole_state
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.training.bundle import Bundle
from sparse_xmc.training.checkpoint import CheckpointStore
from sparse_xmc.training.config import TrainingConfig


class TrainingRanks:
    """The ranks of a run; a single process is one of one, for which everything here does nothing."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    @property
    def first(self) -> bool:
        return self.ranks.rank == 0

    @property
    def suffix(self) -> str:
        """What a figure of this rank is followed by in reports."""
        return f" on each of {self.ranks.size} ranks" if self.ranks.size > 1 else ""

    def own(self, config: TrainingConfig, *, overwrite: bool = False) -> TrainingConfig:
        """The configuration with this rank's folder; with ``overwrite`` the folders of an earlier run's ranks go.

        Raises:
            ValueError: the folder holds a run on another number of ranks, or an option does not work on several.
        """
        if self.ranks.size > 1 and config.amp == "fp16":
            raise ValueError("amp='fp16' does not work on several ranks, whose loss scales would differ: use 'bf16'")
        path = os.path.join(config.out, "ranks.txt")
        earlier = None
        if os.path.exists(path):
            with open(path, encoding="ascii") as file:
                earlier = int(file.read())
        elif os.path.exists(os.path.join(config.out, "identity.json")):
            earlier = 1
        self.meet()
        if earlier is not None and earlier != self.ranks.size and not overwrite:
            raise ValueError(
                f"{config.out} holds a run on {earlier} ranks, this is one on {self.ranks.size}: "
                "choose another --out, or --overwrite to begin anew"
            )
        if self.first and overwrite:
            for folder in glob.glob(os.path.join(glob.escape(config.out), "rank-*")):
                shutil.rmtree(folder, ignore_errors=True)
            if earlier is not None and os.path.exists(path):
                os.remove(path)
        if self.ranks.size == 1:
            return config
        if self.first:
            os.makedirs(config.out, exist_ok=True)
            with open(path, "w", encoding="ascii") as file:
                file.write(str(self.ranks.size))
        self.meet()
        out = config.out if self.first else os.path.join(config.out, f"rank-{self.ranks.rank}")
        return dataclasses.replace(config, out=out, checkpoint_seconds=float("inf"))

    def shard_(self, model: XMCClassifier) -> None:
        """Leaves each rank its labels of every fixed fan-in layer."""
        if self.ranks.size > 1:
            shard_model_(model, self.ranks)

    def agree_on_checkpoint(self, store: CheckpointStore) -> None:
        """Removes checkpoints that not every rank has written."""
        if self.ranks.size == 1:
            return
        everyone = self.ranks.gather_objects(store.steps(), "comparison of the checkpoints")
        common = set.intersection(*(set(steps) for steps in everyone))  # type: ignore[call-overload]
        for step in set(store.steps()) - common:
            shutil.rmtree(os.path.join(store.folder, f"step-{step:010d}"), ignore_errors=True)
        self.meet()

    def save(self, bundle: Bundle, folder: str) -> None:
        """Writes the whole model, from the first rank."""
        with whole_state(bundle.model) if self.ranks.size > 1 else contextlib.nullcontext():
            if self.first:
                bundle.save(folder)
            else:
                bundle.model.state_dict()
        self.meet()

    def meet(self) -> None:
        """Waits until every rank is here."""
        if self.ranks.size > 1:
            self.ranks.gather_integers([0], "meeting of the ranks")


@contextlib.contextmanager
def training_ranks(device: torch.device) -> Iterator[TrainingRanks]:
    """The ranks that ``torchrun`` has started (``WORLD_SIZE`` > 1), or this process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield TrainingRanks(Ranks(None, device))
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield TrainingRanks(Ranks(dist.group.WORLD, device))
    finally:
        dist.destroy_process_group()
