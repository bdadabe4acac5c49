"""A rank that dies or hangs: the others fail in bounded time and say so; torchrun resumes from the last checkpoint."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sparse_xmc.distributed import LabelShardedLinear, RankFailure
from tests.distributed.pool import TIMEOUT as POOL_TIMEOUT
from tests.distributed.pool import RankPool
from tests.distributed.restart_job import train

TIMEOUT = 3.0


def lose_a_rank(how: str) -> tuple[float, str]:
    targets = torch.eye(2, 10).to_sparse_csr()
    x = torch.randn(2, 8, requires_grad=True)
    LabelShardedLinear(8, 10, 3, seed=0).loss(x, targets).backward()  # compiles the kernels, which takes its time
    head = LabelShardedLinear(8, 10, 3, seed=0, mesh=dist.new_group(timeout=timedelta(seconds=TIMEOUT)))
    dist.barrier()
    loss = head.loss(x, targets)
    if dist.get_rank() == 1:
        if how == "dies":
            os._exit(1)
        return 0.0, "takes no part"
    start = time.monotonic()
    try:
        loss.backward()
    except RankFailure as failure:
        return time.monotonic() - start, str(failure)
    return time.monotonic() - start, "nothing happened"


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_others_fail_in_bounded_time(how):
    pool = RankPool(2)
    try:
        returned, answer = pool.outcomes(lose_a_rank, how)[0]
    finally:
        pool.close()
    assert returned, answer
    seconds, text = answer
    assert seconds < POOL_TIMEOUT / 2  # the pool's own would be the whole of it
    assert "rank 0 of 2: reduce-scatter of the embeddings' gradient failed after" in text
    assert "another rank has died, hangs or made a different call" in text


def test_torchrun_resumes_from_the_last_checkpoint(pools, tmp_path):
    """Weights, connections and the optimizer's state are those of a run that nothing disturbed, bit for bit."""
    undisturbed = pools(2).run(train, str(tmp_path / "undisturbed"))[0]
    folder = tmp_path / "disturbed"
    folder.mkdir()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    done = subprocess.run(
        [*command, "-m", "tests.distributed.restart_job", str(folder)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "lost").exists()
    result = torch.load(folder / "result.pt")
    assert result.pop("first") == 3 and undisturbed.pop("first") == 0
    assert result.keys() == undisturbed.keys() and "exp_avg_sq of head.shard.weight" in result
    assert all(torch.equal(result[name], tensor) for name, tensor in undisturbed.items())
