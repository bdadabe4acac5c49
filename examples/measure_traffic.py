"""Bytes that a training step of a label-sharded head sends between processes, against the formula.

Reads an interface's counters (Linux), so nothing else should use it meanwhile. Between processes of one machine:

    unshare -rn sh -c 'ip link set lo up; torchrun --nproc-per-node 4 examples/measure_traffic.py'

Between machines, the same line on each (one process a machine, or bytes that stay on one are missing):

    torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint host0:29500 examples/measure_traffic.py --interface eth0
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from bench.studies.cost_model import Head, sent_bytes
from sparse_xmc.distributed import LabelShardedLinear, init_process_group


def sent_so_far(interface: str) -> int:
    """Bytes sent over the interfaces of this name since they came up, packet headers included; of all machines."""
    with open("/proc/net/dev", encoding="ascii") as file:
        line = next(line for line in file if line.strip().startswith(f"{interface}:"))
    once = os.environ["LOCAL_RANK"] == "0"
    total = torch.tensor(int(line.split(":")[1].split()[8]) if once else 0)
    dist.all_reduce(total)
    return int(total)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=20_000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--fan-in", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256, help="rows of all ranks")
    parser.add_argument("--positives", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--interface", default="lo")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    init_process_group("gloo")
    size = dist.get_world_size()
    rows = options.batch // size
    head = LabelShardedLinear(options.features, options.labels, options.fan_in, seed=0)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    x = torch.randn(rows, options.features, requires_grad=True)
    columns = torch.stack([torch.randperm(options.labels)[: options.positives].sort().values for _ in range(rows)])
    crow = torch.arange(rows + 1) * options.positives
    targets = torch.sparse_csr_tensor(crow, columns.flatten(), torch.ones(columns.numel()), (rows, options.labels))

    def step() -> None:
        optimizer.zero_grad()
        head.loss(x, targets).backward()
        optimizer.step()

    step()
    dist.barrier()
    time.sleep(0.2)
    before, began = sent_so_far(options.interface), time.monotonic()
    dist.barrier()
    for _ in range(options.steps):
        step()
    dist.barrier()
    elapsed = time.monotonic() - began
    time.sleep(0.2)
    measured = (sent_so_far(options.interface) - before) / options.steps
    shape = Head(options.labels, options.features, options.fan_in, rows * size, x_bytes=4, positives=options.positives)
    formula = size * sum(sent_bytes(shape, size).values())
    if dist.get_rank() == 0:
        share = f"{measured / formula:.3f}" if formula else "-"
        print(
            f"| {size} | {measured:,.0f} | {formula:,.0f} | {share} | {head.shard.num_bytes():,} | "
            f"{elapsed / options.steps * 1e3:.1f} |"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
