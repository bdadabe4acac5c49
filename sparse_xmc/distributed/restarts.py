"""Joining the ranks that ``torchrun`` started, also after it has started them again."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from sparse_xmc.distributed.ranks import RankFailure


def init_process_group(backend: str, **options: Any) -> None:
    """``torch.distributed.init_process_group`` from torchrun's environment, safe under ``--max-restarts`` on one node.

    Torch keeps one store for all attempts (pytorch issue 135712), so ranks that were started again can read the address
    of one that is dead and fail with "connection refused". Here each attempt has its own keys. On several nodes the
    attempts are counted per node and may differ, and the keys stay torch's: start torchrun with
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` there.

    Examples:
        >>> import os
        >>> from sparse_xmc.distributed import init_process_group
        >>> if "RANK" in os.environ:  # under torchrun
        ...     init_process_group("gloo")
    """
    attempt = _attempt()
    if attempt is None:
        dist.init_process_group(backend, **options)
        return
    timeout = {"timeout": options["timeout"]} if "timeout" in options else {}
    store, rank, world_size = next(dist.rendezvous("env://", **timeout))
    store = dist.PrefixStore(attempt, store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, **options)


def _attempt() -> str | None:
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    return None if attempt is None or os.environ.get("GROUP_WORLD_SIZE") != "1" else f"attempt {attempt}"


def join(timeout: float) -> tuple[Any, int, int, str]:
    """The store of the ranks that the environment tells of (``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``).

    Returns:
        Store, rank, number of ranks and the address of the store.

    Raises:
        ValueError: a variable is missing or makes no sense.
        RankFailure: the store is not reached within ``timeout`` seconds, or its port is taken.
    """
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if not os.environ.get(name)]
    if missing:
        raise ValueError(f"several ranks need {', '.join(names)} in the environment: {', '.join(missing)} missing")
    rank, size, port = (_integer(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if not 0 <= rank < size:
        raise ValueError(f"RANK must lie in [0, WORLD_SIZE={size}), got {rank}")
    where = f"{os.environ['MASTER_ADDR']}:{port}"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
        attempt = _attempt()
        store = store if attempt is None else dist.PrefixStore(attempt, store)
        if store.add(f"rank {rank}", 1) != 1:
            raise RankFailure(f"rank {rank} of {size}: another process has this rank too: give each its own RANK")
    except RankFailure:
        raise
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RankFailure(f"rank {rank} of {size} could not join the others at {where}: {reason:.200}") from error
    return store, rank, size, where


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ValueError(f"{name} must be an integer, got {os.environ[name]!r}") from None
