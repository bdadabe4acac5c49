"""The collectives of a label-sharded head over one dimension of the mesh, with errors that say what happened."""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

# the name of all_gather_into_tensor from torch 2.13 on
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class RankFailure(RuntimeError):
    """A collective did not complete: another rank has died, hangs, or made a different call.

    Examples:
        >>> from sparse_xmc.distributed import RankFailure
        >>> try:
        ...     raise RankFailure("rank 1 gave no sign of life for 30 s")
        ... except RuntimeError as error:
        ...     print(error)
        rank 1 gave no sign of life for 30 s
    """


_host_groups: weakref.WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = weakref.WeakKeyDictionary()


def device_types(group: dist.ProcessGroup | None = None) -> set[str]:
    """Types of the devices whose tensors a process group sends (None: the default group)."""
    backends = dist.get_backend_config(group)  # "cpu:gloo,cuda:nccl"
    return {backend.partition(":")[0] for backend in backends.split(",")}


def _host_group(group: dist.ProcessGroup, device: torch.device) -> dist.ProcessGroup:
    """A group of the same ranks that sends tensors of the CPU: the group itself, or one made for it at the first call."""
    if "cpu" in device_types(group):
        return group
    if group not in _host_groups:
        options = group._get_backend(device).options
        _host_groups[group] = dist.new_group(
            dist.get_process_group_ranks(group), options._timeout, "gloo", use_local_synchronization=True
        )
    return _host_groups[group]


class Ranks:
    """The ranks of one process group.

    With one rank nothing is sent. Rows of a batch may be spread unevenly over the ranks: ``rows[r]`` is the number that
    rank ``r`` holds. Tensors travel from device to device; integers and documents, which the host is to know, from host
    to host, so that nothing here waits for a device.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        self.group, self.device = group, device
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RankFailure(
                f"rank {self.rank} of {self.size}: {what} failed after {time.monotonic() - start:.1f} s, because "
                f"another rank has died, hangs or made a different call ({reason})"
            ) from error

    def gather_integers(self, values: Sequence[int], what: str) -> list[list[int]]:
        """The integers of every rank, in order of ranks. Waits for the other hosts, not for a device."""
        if self.group is None or self.size == 1:
            return [list(values)]
        mine = torch.tensor(values, dtype=torch.int64, device="cpu")
        everyone = mine.new_empty(self.size * len(values))
        with self._naming(what):
            _all_gather(everyone, mine, group=_host_group(self.group, self.device))
            return everyone.view(self.size, -1).tolist()

    def gather_documents(self, value: Any, what: str) -> list[Any]:
        """A JSON value of every rank, in order of ranks. (Nothing that is received is ever unpickled.)"""
        text = json.dumps(value).encode()
        if self.group is None or self.size == 1:
            return [json.loads(text)]
        lengths = [length for (length,) in self.gather_integers([len(text)], what)]
        mine = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        hosts = Ranks(_host_group(self.group, self.device), mine.device)
        parts = hosts.gather_rows(mine, lengths, what).split(lengths)
        return [json.loads(part.numpy().tobytes()) for part in parts]

    def gather_rows(self, mine: Tensor, rows: Sequence[int], what: str) -> Tensor:
        """``[rows[rank], ...]`` of every rank to ``[sum(rows), ...]`` on all of them."""
        if self.size == 1:
            return mine
        return self.start_gather(mine, rows, what).wait()

    def start_gather(self, mine: Tensor, rows: Sequence[int], what: str) -> PendingGather:
        """Starts ``gather_rows`` and returns at once."""
        most = max(rows)
        padded = F.pad(mine, (0, 0) * (mine.ndim - 1) + (0, most - len(mine))).contiguous()
        everyone = padded.new_empty(self.size * most, *mine.shape[1:])
        work = None
        if self.size == 1:
            everyone = padded
        elif everyone.numel():
            with self._naming(what):
                work = _all_gather(everyone, padded, group=self.group, async_op=True)
        return PendingGather(self, work, everyone, list(rows), what)

    def send_rows(self, blocks: Tensor, rows: Sequence[int], what: str) -> Tensor:
        """Sends block ``r`` of ``[sum(rows), ...]`` to rank ``r``; returns those received, ``[size, own, ...]``."""
        own = rows[self.rank]
        if self.size == 1:
            return blocks[None]
        received = blocks.new_empty(self.size * own, *blocks.shape[1:])
        with self._naming(what):
            dist.all_to_all_single(received, blocks.contiguous(), [own] * self.size, list(rows), group=self.group)
        return received.view(self.size, own, *blocks.shape[1:])

    def sum_(self, tensor: Tensor, what: str) -> Tensor:
        """Sums a tensor over the ranks, in place."""
        if self.size > 1:
            with self._naming(what):
                dist.all_reduce(tensor, group=self.group)
        return tensor

    def copy_first_(self, tensor: Tensor, what: str) -> Tensor:
        """Replaces a tensor by the first rank's."""
        if self.size > 1:
            with self._naming(what):
                dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def pass_to_first(self, tensor: Tensor, sender: int, what: str) -> Tensor:
        """Copies a tensor of rank ``sender`` to the first rank's, which has its shape and dtype; for these two ranks."""
        if sender != 0:
            with self._naming(what):
                if self.rank == sender:
                    dist.send(tensor, group_dst=0, group=self.group)
                else:
                    dist.recv(tensor, group_src=sender, group=self.group)
        return tensor


class PendingGather:
    """An all-gather under way."""

    def __init__(self, ranks: Ranks, work: dist.Work | None, everyone: Tensor, rows: list[int], what: str) -> None:
        self._ranks, self._work, self._everyone, self._rows, self._what = ranks, work, everyone, rows, what

    def wait(self) -> Tensor:
        """``[sum(rows), ...]``: the rows of every rank, in order of ranks, without the padding they were sent with."""
        if self._work is not None:
            with self._ranks._naming(self._what):
                self._work.wait()
        most = max(self._rows)
        if all(rows == most for rows in self._rows):
            return self._everyone
        blocks = self._everyone.split(most)
        return torch.cat([block[:rows] for block, rows in zip(blocks, self._rows, strict=True)])
