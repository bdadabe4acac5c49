"""Runs a training many times and kills it at random moments; started by ``test_kill.py`` in a process of its own.

    python kill_runs.py DATA FOLDER KILLS

Moments are counted in the run's operations on its files, not in seconds: every machine kills at the same ones.
Everything is imported once; each run is a forked child, so that a kill costs no start-up.
"""

import json
import os
import random
import signal
import sys
import traceback

import matplotlib.backends.backend_agg  # noqa: F401  (what a run imports on the way, here once for all)
import matplotlib.figure  # noqa: F401
import safetensors.torch  # noqa: F401
import sklearn.feature_extraction.text  # noqa: F401
import torch

import sparse_xmc.ops.cpu_kernels.linear
import sparse_xmc.ops.cpu_kernels.sparse_input  # noqa: F401
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.jobs import train

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
MOST_OPERATIONS = 110  # from the start of a run to its kill; a step with its checkpoint has about 28


def configuration(data: str, out: str) -> TrainingConfig:
    return TrainingConfig(
        train=data,
        valid=data,
        out=out,
        embedding_dim=8,
        intermediate=16,
        fan_in=4,
        lexical_fan_in=4,
        svd_init=False,
        min_df=1,
        epochs=10,
        batch_size=8,
        patience=0,
        checkpoint_seconds=0,
        log_every=3,
        threads=1,
        device="cpu",
        progress=False,
    )


def child(data: str, out: str, operations: int) -> int:
    """Trains in a process that kills itself before the given operation on a file of the run; its number."""
    pid = os.fork()
    if pid == 0:
        left = operations

        def count(event: str, args: tuple[object, ...]) -> None:
            nonlocal left
            if event in OPERATIONS and str(args[0]).startswith(out):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            train(configuration(data, out), report=lambda text: None)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid


def main(data: str, folder: str, kills: int) -> None:
    torch.set_num_threads(1)
    if os.waitpid(child(data, f"{folder}/whole", 0), 0)[1] != 0:
        raise SystemExit("the undisturbed run failed")
    rng, killed = random.Random(0), 0
    for _ in range(kills):
        status = os.waitpid(child(data, f"{folder}/killed", rng.randint(1, MOST_OPERATIONS)), 0)[1]
        if status not in (0, signal.SIGKILL):
            raise SystemExit(f"a run ended with status {status}")
        killed += status == signal.SIGKILL
    if os.waitpid(child(data, f"{folder}/killed", 0), 0)[1] != 0:
        raise SystemExit("the killed run did not resume")
    print(json.dumps({"killed": killed}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
