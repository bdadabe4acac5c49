"""Training under ``torchrun``: every rank reads the same data and runs the same encoder; labels are spread over the ranks.

The result is that of one process; a rank's share of the head, its gradients and optimizer state is ``1 / ranks``. All
ranks share the run's folder, in which the first one writes: whole tensors, to which the others send their blocks, so any
number of ranks goes on with what another number has saved.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.restarts import init_process_group
from sparse_xmc.distributed.shared_rows import SharedRows
from sparse_xmc.ops._arguments import num_index_rows
from sparse_xmc.storage.tensor_file import Block, Shards


class TrainingRanks:
    """The ranks of a run; a single process is one of one, for which nothing here does anything."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    @property
    def first(self) -> bool:
        return self.ranks.rank == 0

    @property
    def suffix(self) -> str:
        """What a figure of this rank is followed by in reports."""
        return f" on each of {self.ranks.size} ranks" if self.ranks.size > 1 else ""

    def check(self, config: TrainingConfig) -> None:
        """Raises:
        ValueError: an option does not work on several ranks.
        """
        if self.ranks.size > 1 and config.amp == "fp16":
            raise ValueError("amp='fp16' does not work on several ranks, whose loss scales would differ: use 'bf16'")

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes so."""
        if self.ranks.size == 1:
            return wish
        return any(said for (said,) in self.ranks.gather_integers([wish], "agreement on a checkpoint"))

    def meet(self) -> None:
        """Waits until every rank is here."""
        self.ranks.gather_integers([0], "meeting of the ranks")

    @contextlib.contextmanager
    def in_turn(self, needed: bool) -> Iterator[None]:
        """Lets the first rank through before the others, which find the files that it has written."""
        if needed and not self.first:
            self.meet()
        yield
        if needed and self.first:
            self.meet()


def label_shards(model: nn.Module, optimizers: Sequence[Optimizer], ranks: Ranks) -> Shards:
    """How the tensors of a model and of a trainer's checkpoints are spread; see ``Trainer.save`` for their names."""
    blocks: dict[str, Block] = {}
    of_parameters: dict[int, Block] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, SharedRows):
            labels, total, size = layer.labels, layer.blocks[-1].stop, layer.group_size
            rows = range(labels.start // size, num_index_rows(labels.stop, size))
            for key in layer.state_dict():
                whole = Block(rows, num_index_rows(total, size)) if key == "indices" else Block(labels, total)
                blocks[f"{name}.{key}"] = whole
            of_parameters |= {id(parameter): Block(labels, total) for parameter in layer.parameters()}
    for i, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for j, parameter in enumerate(parameters):
            if id(parameter) in of_parameters:
                blocks[f"state.optimizers.{i}.state.{j}."] = of_parameters[id(parameter)]
    return Shards(ranks, blocks)


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
