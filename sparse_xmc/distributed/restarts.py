"""Joining the ranks that ``torchrun`` started, also after it has started them again."""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist


def init_process_group(backend: str, **options: Any) -> None:
    """``torch.distributed.init_process_group`` from torchrun's environment, safe under ``--max-restarts`` on one node.

    Torch keeps one store for all attempts (pytorch issue 135712), so ranks that were started again can read the address
    of one that is dead and fail with "connection refused". Here each attempt has its own keys. On several nodes the
    attempts are counted per node and may differ, and the keys stay torch's: start torchrun with
    ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` there.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if attempt is None or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend, **options)
        return
    timeout = {"timeout": options["timeout"]} if "timeout" in options else {}
    store, rank, world_size = next(dist.rendezvous("env://", **timeout))
    dist.init_process_group(
        backend, store=dist.PrefixStore(f"attempt {attempt}", store), rank=rank, world_size=world_size, **options
    )
