"""Hours of training, evaluation, rewiring, saving and resuming in one process: memory and open files must stay flat.

    python -m tests.soak --seconds 7200

Each round kills a run by gradients half-way (an exception at a step that changes from round to round), resumes it, loads and
evaluates its model, and solves one directly. Once a tenth of the time or of the rounds is over, but not before round 20, where
allocators have come to rest, memory, handles, threads and mapped files are taken; at the end there may be no more.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import sparse_xmc
from sparse_xmc.app import jobs
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.trainer import Trainer

MOST_GROWTH = 16 << 20  # bytes of resident memory between the two times
_WARM = 20


class Held(NamedTuple):
    """What a process holds."""

    memory: int
    handles: int
    threads: int
    mappings: int


class _Killed(Exception):
    """The end of a run half-way."""


def held() -> Held:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what the allocator keeps for later is nobody's
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    mappings = sum(".safetensors" in line for line in Path("/proc/self/maps").read_text().splitlines())
    return Held(resident, len(os.listdir("/proc/self/fd")), threading.active_count(), mappings)


def write_data(path: Path) -> None:
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(200):
            words = rng.sample(range(40), 5)
            text = " ".join(f"w{word}" for word in words)
            file.write(json.dumps({"text": text, "labels": [f"l{word}" for word in words[:2]]}) + "\n")


def configuration(data: Path, out: Path, **options: object) -> TrainingConfig:
    files = {"train": str(data), "test": str(data), "out": str(out), "min_df": 1, "threads": 1, "progress": False}
    return TrainingConfig(**{**files, **options})  # type: ignore[arg-type]


def one_round(data: Path, folder: Path, number: int) -> str:
    """A run that is killed and resumed, used, and another by the direct solver; its metrics."""
    gradients = {"embedding_dim": 8, "fan_in": 4, "lexical_fan_in": 4, "svd_init": False, "epochs": 3, "batch_size": 16}
    config = configuration(data, folder / "run", device="cpu", checkpoint_seconds=0, valid=str(data), **gradients)
    save, left = Trainer.save, 2 + number % 20

    def save_and_count(trainer: Trainer) -> None:
        nonlocal left
        save(trainer)
        left -= 1
        if left == 0:
            raise _Killed

    Trainer.save = save_and_count  # type: ignore[method-assign]
    with contextlib.suppress(_Killed):
        jobs.train(config, report=lambda text: None)
    Trainer.save = save  # type: ignore[method-assign]
    metrics = jobs.train(config, report=lambda text: None)
    model = sparse_xmc.load(folder / "run", device="cpu")
    assert len(model.predict(["w1 w2 w3"], k=3)[0]) == 3
    jobs.evaluate(str(folder / "run"), str(data), options={"progress": False}, report=lambda text: None)
    jobs.train(configuration(data, folder / "direct", effort="fast"), report=lambda text: None)
    sparse_xmc.load(folder / "direct").predict(["w1 w2 w3"])
    shutil.rmtree(folder)
    return f"{metrics['P@1']:.6f} {metrics['nDCG@5']:.6f}"


def soak(seconds: float, rounds: int) -> tuple[int, Held, Held]:
    """Rounds within this time, at most so many, and what was held after a tenth of it and at the end.

    Raises:
        AssertionError: a round ended with other metrics than the first.
    """
    begun, number, results = time.monotonic(), 0, set()
    first: Held | None = None
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        write_data(Path(place, "data.jsonl"))
        while number < rounds and time.monotonic() - begun < seconds:
            results.add(one_round(Path(place, "data.jsonl"), Path(place, "round"), number))
            assert len(results) == 1, f"round {number} has other metrics: {sorted(results)}"
            number += 1
            begun_well = number >= rounds / 10 or time.monotonic() - begun > seconds / 10
            if first is None and begun_well and number >= min(_WARM, rounds // 2):
                first = held()
    return number, first or held(), held()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--rounds", type=int, default=1 << 40)
    options = parser.parse_args()
    with contextlib.redirect_stdout(io.StringIO()):
        number, first, last = soak(options.seconds, options.rounds)
    print(f"{number} rounds; held after a tenth: {first}; at the end: {last}")
    flat = last.memory - first.memory < MOST_GROWTH and last[1:] <= first[1:]
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
