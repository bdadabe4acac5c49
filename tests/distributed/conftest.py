"""Pools of gloo processes, started once and shared by the tests of this folder."""

from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist

from tests.conftest import INTERPRETING
from tests.distributed.pool import RankPool

collect_ignore_glob = ["*"] if INTERPRETING or not dist.is_available() else []


@pytest.fixture(scope="session")
def pools() -> Iterator[Callable[[int], RankPool]]:
    running: dict[int, RankPool] = {}

    def pool(size: int) -> RankPool:
        if size in running and running[size].broken:  # its ranks may wait for each other
            running.pop(size).close()
        if size not in running:
            running[size] = RankPool(size)
        return running[size]

    yield pool
    for one in running.values():
        one.close()
