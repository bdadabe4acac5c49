"""Peak resident memory of every rank of a training run: while it makes its labels of a head, trains and saves them.

    for n in 1 2 4; do torchrun --nproc-per-node $n examples/measure_memory.py; done

The classes are those of ``python -m sparse_xmc train`` under torchrun. Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from sparse_xmc.app.sharding import label_shards
from sparse_xmc.distributed import init_process_group
from sparse_xmc.distributed.model import shard_model_
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.storage.checkpoint import CheckpointStore, flatten_tensors


def resident(kind: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at the peak."""
    with open("/proc/self/status", encoding="ascii") as file:
        found = re.search(kind + r":\s+(\d+) kB", file.read())
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def make(options: argparse.Namespace, labels: int, ranks: Ranks) -> nn.ModuleDict:
    """A model with a head of its own on each rank, as training makes it."""
    shape = (options.features, labels, options.fan_in)
    device = None if ranks.size == 1 else "meta"
    model = nn.ModuleDict({"encoder": nn.Linear(8, options.features), "head": FixedFanInLinear(*shape, device=device)})
    if ranks.size > 1:
        shard_model_(model, ranks, seed=0)
    return model


def train_and_save(model: nn.ModuleDict, options: argparse.Namespace, labels: int, ranks: Ranks) -> list[int]:
    """Two steps of Adam and a checkpoint; peaks of both."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.randint(0, labels, (options.batch, 1), generator=generator)
    ones = torch.ones(options.batch)
    targets = torch.sparse_csr_tensor(torch.arange(options.batch + 1), columns.flatten(), ones, (options.batch, labels))
    x = torch.randn(options.batch, 8, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        model["head"].loss(model["encoder"](x), targets).backward()
        optimizer.step()
    peaks = [resident("VmHWM")]
    optimizer.zero_grad()
    reset_peak()
    with tempfile.TemporaryDirectory() as folder:  # only the first rank writes
        store = CheckpointStore(os.path.join(folder, "checkpoints"))
        store.shards = label_shards(model, [optimizer], ranks)
        structure, tensors = flatten_tensors({"optimizers": [optimizer.state_dict()]}, "state")
        store.save(2, {"model": model.state_dict(), "state": tensors}, {"structure": structure})
    return [*peaks, resident("VmHWM")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--fan-in", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    init_process_group("gloo")
    ranks = Ranks(dist.group.WORLD, torch.device("cpu"))
    few = 1000 * ranks.size  # everything is compiled and allocated once
    train_and_save(make(options, few, ranks), options, few, ranks)

    before = resident("VmRSS")
    reset_peak()
    model = make(options, options.labels, ranks)
    built = resident("VmHWM")
    peaks = [built, *train_and_save(model, options, options.labels, ranks)]
    megabytes = " | ".join(f"{(peak - before) / 2**20:.0f}" for peak in peaks)
    for rank in range(ranks.size):
        if rank == ranks.rank:
            print(f"| {ranks.size} | {rank} | {model['head'].num_bytes() / 2**20:.0f} | {megabytes} |", flush=True)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
