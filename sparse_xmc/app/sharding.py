"""Training under ``torchrun``: every rank reads the same data and runs the same encoder; labels are spread over the ranks.

The result is that of one process; a rank's share of the head, its gradients and optimizer state is ``1 / ranks``. All
ranks share the run's folder, in which the first one writes: whole tensors, to which the others send their blocks, so any
number of ranks goes on with what another number has saved.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.distributed.heartbeat import TIMEOUT, Heartbeat
from sparse_xmc.distributed.layout import Layout, block
from sparse_xmc.distributed.ranks import RankFailure, Ranks
from sparse_xmc.distributed.restarts import join
from sparse_xmc.storage.tensor_file import Shards

# options that each rank may have for itself: data may lie elsewhere, what is in them is compared
_OWN = {"progress", "threads", "device", "train", "train_labels", "valid", "valid_labels"}
_OWN |= {"test", "test_labels", "test_filter"}
_ANY_LENGTH = timedelta(days=7)  # of a step: who waits is told by the heartbeat whether that makes sense


class TrainingRanks:
    """The ranks of a run; a single process is one of one, for which nothing here does anything."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._agreed: Exception | None = None  # a failure that all ranks know of

    @property
    def first(self) -> bool:
        return self.ranks.rank == 0

    @property
    def alone(self) -> bool:
        return self.ranks.size == 1

    @property
    def suffix(self) -> str:
        """What a figure of this rank is followed by in reports."""
        return f" on each of {self.ranks.size} ranks" if self.ranks.size > 1 else ""

    def check(self, config: TrainingConfig, overwrite: bool = False) -> None:
        """Compares this rank's command and versions with the others', before anything is read or written.

        Raises:
            ValueError: an option does not work on several ranks, or is another one on another rank.
        """
        if self.ranks.size == 1:
            return
        if config.amp == "fp16":
            raise ValueError("amp='fp16' does not work on several ranks, whose loss scales would differ: use 'bf16'")
        values = {"overwrite": overwrite, **_versions()}
        values |= {name: value for name, value in dataclasses.asdict(config).items() if name not in _OWN}
        values["device"] = self.ranks.device.type
        self.compare(values)

    def compare(self, values: Mapping[str, Any]) -> None:
        """Raises:
        ValueError: a value differs between the ranks; on all of them.
        """
        said = self.exchange(dict(values))
        values_of = {
            name: [one.get(name) for one in said] for name in dict.fromkeys(name for one in said for name in one)
        }
        differing = [name for name, of_ranks in values_of.items() if any(value != of_ranks[0] for value in of_ranks)]
        if not differing:
            return
        # one that a rank left open may follow from another that was given
        name = min(differing, key=lambda name: None in values_of[name])
        of_ranks = values_of[name]
        other = next(rank for rank, value in enumerate(of_ranks) if value != of_ranks[0])
        raise ValueError(
            f"the ranks differ in {name}: {of_ranks[0]!r:.80} on rank 0, {of_ranks[other]!r:.80} on rank {other}"
        )

    def exchange(self, value: Any) -> list[Any]:
        """A JSON value of every rank, in order of ranks."""
        return self.ranks.gather_documents(value, "exchange between the ranks")

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes so."""
        if self.ranks.size == 1:
            return wish
        return any(said for (said,) in self.ranks.gather_integers([wish], "agreement on a checkpoint"))

    def meet(self) -> None:
        """Waits until every rank is here."""
        self.ranks.gather_integers([0], "meeting of the ranks")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A part of the work that every rank does for itself: what fails on one rank ends all of them.

        Raises:
            RankFailure: another rank has failed; its error is told.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            if isinstance(error, RankFailure) or error is self._agreed:
                raise
            failure = error
        if self.ranks.size > 1:
            text = None if failure is None else " ".join(str(failure).split()) or type(failure).__name__
            said = self.exchange(text)
            failed = [rank for rank, text in enumerate(said) if text is not None]
            if failed and failure is None:
                raise RankFailure(f"rank {failed[0]} of {self.ranks.size}: {said[failed[0]]}")
        if failure is not None:
            self._agreed = failure
            raise failure

    @contextlib.contextmanager
    def in_turn(self, needed: bool) -> Iterator[None]:
        """Lets the first rank through before the others, which find the files that it has written."""
        if not needed or self.ranks.size == 1:
            yield
        elif self.first:
            with self.together():
                yield
        else:
            with self.together():
                pass
            yield


def _versions() -> dict[str, str]:
    """What the same numbers on all ranks depend on."""
    versions = {"the version of Python": ".".join(map(str, sys.version_info[:2]))}
    for package in ("sparse_xmc", "torch", "numpy", "numba"):
        module = sys.modules.get(package)
        if module is not None:
            versions[f"the version of {package}"] = str(getattr(module, "__version__", ""))
    return versions


def label_shards(model: nn.Module, optimizers: Sequence[Optimizer], ranks: Ranks) -> Shards:
    """How the tensors of a model and of a trainer's checkpoints are spread; see ``Trainer.save`` for their names."""
    layout = Layout(model)
    blocks = layout.model_blocks()
    for i, optimizer in enumerate(optimizers):
        for j, (_, head, _) in enumerate(layout.parameters_of(optimizer)):
            if head is not None:
                blocks[f"state.optimizers.{i}.state.{j}."] = block(head)
    return Shards(ranks, blocks)


@contextlib.contextmanager
def training_ranks(device: torch.device, timeout: float = TIMEOUT) -> Iterator[TrainingRanks]:
    """The ranks that ``torchrun`` has started (``WORLD_SIZE`` > 1), or this process alone.

    Args:
        timeout: seconds without a sign of life of a rank after which the others end; steps may take any time.

    Raises:
        ValueError, RankFailure: the ranks do not come together, or one fails: the first one's reason is told on all.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield TrainingRanks(Ranks(None, device))
        return
    store, rank, size, where = join(timeout)
    heartbeat = Heartbeat(dist.PrefixStore("sparse_xmc", store), rank, size, timeout, where=where)
    try:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        _meet(store, rank, size, timeout)
        # with gloo beside NCCL what hosts tell each other waits for no GPU
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_ANY_LENGTH)
        heartbeat.watch_others()
        yield TrainingRanks(Ranks(dist.group.WORLD, device))
    except Exception as error:
        first = heartbeat.fail(error)
        if dist.is_initialized():
            dist.destroy_process_group()
        heartbeat.linger()
        if first is not None and isinstance(error, RankFailure):
            raise RankFailure(first) from error
        raise
    finally:
        heartbeat.close()
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(store: Any, rank: int, size: int, timeout: float) -> None:
    """Waits until every rank has joined; the backend would wait as long as a step may take."""
    end = time.monotonic() + timeout
    while not store.check([f"rank {other}" for other in range(size)]):
        if time.monotonic() > end:
            absent = [other for other in range(size) if not store.check([f"rank {other}"])]
            raise RankFailure(f"rank {rank} of {size}: rank {absent[0]} has not joined within {timeout:.0f} s")
        time.sleep(0.05)
