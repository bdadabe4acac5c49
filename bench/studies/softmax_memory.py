"""Peak memory of a softmax over many items: loss and gradients of a dense head, of the streaming and of the sampled sparse one.

    python -m bench.studies.softmax_memory [--labels N] [--rows N] [--heads NAME ...]

Each head is measured in a process of its own; what the process held before the head was made is subtracted. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparse_xmc.models import FixedFanInLinear

FAN_IN, NEGATIVES = 32, 1024
HEADS = ("dense", "dense, bfloat16 autocast", "streaming", "sampled", "sampled, sparse gradient")


def held(kind: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024


def train_once(head: str, labels: int, features: int, rows: int) -> None:
    """Makes the head; a loss and its gradients."""
    x = torch.randn(rows, features, requires_grad=True)
    classes = torch.randint(labels, (rows,))
    if head.startswith("dense"):
        dense = nn.Linear(features, labels)
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in head):
            F.cross_entropy(dense(x), classes).backward()
        return
    options: dict[str, Any] = {"loss": "cross_entropy"}
    if head.startswith("sampled"):
        options = {"loss": "sampled_softmax", "num_negatives": NEGATIVES, "sparse_gradient": "sparse" in head}
    FixedFanInLinear(features, labels, FAN_IN, seed=0).loss(x, classes, **options).backward()


def measure(head: str, labels: int, features: int, rows: int) -> int:
    """Bytes that a step adds at its peak, parameters and gradients included; small ones ran before."""
    train_once(head, 2048, features, rows)
    before = held("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    train_once(head, labels, features, rows)
    return held("VmHWM") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS, help="default: all")
    parser.add_argument("--head", choices=HEADS, help="measure this one in this process")
    options = parser.parse_args()
    if options.head is not None:
        print(measure(options.head, options.labels, options.features, options.rows))
        return
    print(
        f"| head | parameters, MB | peak of loss and gradients, MB | share of {options.heads[0]} |\n|---|---|---|---|"
    )
    sizes = ["--labels", str(options.labels), "--features", str(options.features), "--rows", str(options.rows)]
    first = None
    for head in options.heads:
        command = [sys.executable, "-m", "bench.studies.softmax_memory", *sizes, "--head", head]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak = int(done.stdout.split()[-1])
        first = first or peak
        numbers = options.labels * ((options.features if head.startswith("dense") else FAN_IN * 1.5) + 1)
        print(f"| {head} | {4 * numbers / 1e6:.0f} | {peak / 1e6:.0f} | {peak / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
