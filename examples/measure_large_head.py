"""One head of any size, from drawing its connections to steps, top-k and a checkpoint: seconds and memory of each part.

    python -m examples.measure_large_head --labels 8600000 --fan-in 64 --steps 200 --momentum 0.9 --checkpoint

On a CPU, with a fused SGD update, random rows and labels. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from examples.measure_memory import reset_peak, resident
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim import FusedSGD
from sparse_xmc.storage.checkpoint import CheckpointStore


def measured(work: Callable[[], Any], before: int) -> tuple[Any, dict[str, float]]:
    """A result, its wall and CPU seconds, and the peak of resident memory above ``before`` meanwhile, in MiB."""
    reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return result, {**seconds, "peak_mib": (resident("VmHWM") - before) / 2**20}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--fan-in", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--momentum", type=float, default=0.0, help="of the fused update, bf16 as the weights")
    parser.add_argument("--checkpoint", action="store_true", help="also write and read one")
    options = parser.parse_args(arguments)
    L, B = options.labels, options.batch
    generator = torch.Generator().manual_seed(0)
    few = FixedFanInLinear(options.features, 1000, options.fan_in, dtype=torch.bfloat16)  # compiles the kernels
    train(few, 1, B, generator, options.momentum)
    few.topk(torch.randn(B, options.features), 5)
    before = resident("VmRSS")
    say = lambda name, **values: print(json.dumps({"part": name, **values}), flush=True)  # noqa: E731
    head, part = measured(
        lambda: FixedFanInLinear(options.features, L, options.fan_in, dtype=torch.bfloat16, seed=0), before
    )
    say("made", **part, head_mib=head.num_bytes() / 2**20)
    losses, part = measured(lambda: train(head, options.steps, B, generator, options.momentum), before)
    say("steps", **part, first_loss=losses[0], last_loss=losses[-1])
    top, part = measured(lambda: head.topk(torch.randn(B, options.features, generator=generator), 5), before)
    assert top[1].shape == (B, 5)
    say("top-k", **part)
    if options.checkpoint:
        for name, part in checkpoint(head, before).items():
            say(name, **part)


def train(head: FixedFanInLinear, steps: int, rows: int, generator: torch.Generator, momentum: float) -> list[float]:
    """Fused steps on random rows of five labels each; the losses."""
    optimizer, losses = FusedSGD(0.01, momentum=momentum), []
    head.fuse_optimizer(optimizer)
    for _ in range(steps):
        x = torch.randn(rows, head.in_features, generator=generator)
        labels = torch.randint(0, head.out_features, (rows, 5), generator=generator).tolist()
        losses.append(float(head.step(x, labels)[0]))
    return losses


def checkpoint(head: FixedFanInLinear, before: int) -> dict[str, Any]:
    """Writes and reads the head's tensors."""
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(os.path.join(folder, "checkpoints"))
        _, written = measured(lambda: store.save(1, {"model": head.state_dict()}, {}), before)
        found, read = measured(store.load_latest, before)
    assert found is not None and torch.equal(found[1]["model"]["weight"], head.weight)
    return {"checkpoint written": written, "checkpoint read": read}


if __name__ == "__main__":
    main()
