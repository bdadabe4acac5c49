"""What a step of a label-sharded head sends and takes: counted bytes, and times predicted from them.

``python -m bench.studies.cost_model`` prints the tables of ``reports/scale.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparse_xmc.ops._arguments import num_index_rows

_HEADER = 16  # bytes of two integers: rows and positives of a rank
_POSITIVE = 8  # bytes of a positive on its way: row and label in one int64


@dataclass(frozen=True)
class Head:
    """The whole head and its batch. B counts the rows of all ranks; bytes per number of weights, indices, embeddings;
    positives: labels per row."""

    L: int
    D: int
    K: int
    B: int
    group_size: int = 1
    weight_bytes: int = 2
    index_bytes: int = 2
    x_bytes: int = 2
    positives: float = 5.0
    state_bytes: int = 0


@dataclass(frozen=True)
class Device:
    """memory: bytes; bandwidth: bytes/s of memory; link: bytes/s that one device sends while all do; latency: seconds
    of a collective per doubling of the ranks; matrix, vector: FLOP/s with tensor cores (shared rows) and without;
    efficiency: share of memory bandwidth and of FLOP/s that the fused step reaches."""

    name: str
    memory: float
    bandwidth: float
    link: float
    latency: float
    matrix: float
    vector: float
    efficiency: float = 0.3


DISK = 0.5e9  # bytes/s of a checkpoint's writer, as measured (reports/scale.md)
NAME = 250  # bytes of a label on the host: name, dictionary, counts, as measured (sparse_xmc/app/direct/memory.py)
TOP = 10  # labels that are asked for

H_CLASS = Device("80 GB accelerator, 3.35 TB/s, 50 GB/s network per device", 80e9, 3.35e12, 50e9, 10e-6, 990e12, 60e12)


def sent_bytes(head: Head, ranks: int, *, max_positives: float | None = None) -> dict[str, float]:
    """Bytes that one rank sends in a training step, by collective; rows are spread evenly.

    max_positives: positives of the rank that has most, to which the others are padded (default: as many as the mean).

    An all-gather counts each rank's block once for every other rank, as a ring or direct exchange sends it.
    """
    others, rows = ranks - 1, head.B / ranks
    largest = rows * head.positives if max_positives is None else max_positives
    return {
        "targets": others * (_HEADER + _POSITIVE * largest),
        "embeddings": others * rows * head.D * head.x_bytes,
        "embeddings' gradient": others * rows * head.D * head.x_bytes,
        "loss": 2 * others / ranks * 4,
    }


def rank_memory(head: Head, ranks: int) -> float:
    """Bytes on one rank: weights, indices, optimizer state, and embeddings with their gradient in float32."""
    labels = -(-num_index_rows(head.L, head.group_size) // ranks) * head.group_size
    rows = labels // head.group_size
    layer = labels * head.K * (head.weight_bytes + head.state_bytes) + rows * head.K * head.index_bytes
    return layer + head.B * head.D * (2 * head.x_bytes + 8)


def touched_bytes(head: Head, ranks: int) -> float:
    """Device memory traffic of a fused step on one rank: weights (and state) read and written, indices read, and the
    gathers and scatters of the embeddings, once per row of indices and connection."""
    labels = head.L / ranks
    gathers = 2 * labels / head.group_size * head.K * head.B * head.x_bytes
    cached = 0.1  # share of the gathers that the second-level cache does not serve
    layer = labels * head.K * (2 * head.weight_bytes + 2 * head.state_bytes + head.index_bytes / head.group_size)
    return layer + cached * gathers


def step_seconds(head: Head, ranks: int, device: Device = H_CLASS) -> dict[str, float]:
    """Predicted seconds of a step: compute, communication, and their sum (they do not overlap)."""
    rate = device.matrix if head.group_size >= 16 else device.vector
    flops = 6 * head.B * head.L * head.K / ranks  # logits, input gradient, weight gradient
    compute = max(touched_bytes(head, ranks) / device.bandwidth, flops / rate) / device.efficiency
    doublings = (ranks - 1).bit_length()
    sent = sum(sent_bytes(head, ranks).values())
    send = sent / device.link + 5 * device.latency * doublings if ranks > 1 else 0.0
    return {"compute": compute, "communication": send, "total": compute + send}


def table(group_size: int, batch: int, device: Device = H_CLASS) -> str:
    """Markdown: labels x ranks, predicted memory per device and step time."""
    lines = [
        "| labels | devices | GB per device | fits | compute ms | communication ms | step ms | communication share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for L in (10**7, 10**8, 10**9):
        for ranks in (1, 8, 64, 256, 1024):
            head = Head(L, D=768, K=64, B=batch, group_size=group_size)
            memory, time = rank_memory(head, ranks), step_seconds(head, ranks, device)
            fits = "yes" if memory < 0.8 * device.memory else "no"
            lines.append(
                f"| {L:,} | {ranks} | {memory / 1e9:.2f} | {fits} | {time['compute'] * 1e3:.2f} | "
                f"{time['communication'] * 1e3:.2f} | {time['total'] * 1e3:.2f} | "
                f"{time['communication'] / time['total']:.0%} |"
            )
    return "\n".join(lines)


def surroundings(batch: int, *, rows_per_label: float = 1.0, disk: float = DISK, device: Device = H_CLASS) -> str:
    """Markdown: labels x ranks, what grows around the step: traffic, an epoch, checkpoints, the host, the top-k merge.

    Args:
        rows_per_label: rows of an epoch, over the labels.
        disk: bytes/s that one writer of checkpoints reaches.
    """
    lines = [
        "| labels | devices | MB sent a step and device | epoch, hours | device hours | checkpoint GB | written in s | "
        "GB of label names on each host | top-k candidates of a row, KB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for L in (10**7, 10**8, 10**9):
        for ranks in (1, 8, 64, 1024):
            head = Head(L, D=768, K=64, B=batch, group_size=32)
            sent = sum(sent_bytes(head, ranks).values()) if ranks > 1 else 0.0
            hours = rows_per_label * L / batch * step_seconds(head, ranks, device)["total"] / 3600
            stored = L * (head.K * head.weight_bytes + 4) + num_index_rows(L, 32) * head.K * head.index_bytes
            lines.append(
                f"| {L:,} | {ranks} | {sent / 1e6:.1f} | {hours:,.2f} | {hours * ranks:,.1f} | {stored / 1e9:.1f} | "
                f"{stored / disk:,.0f} | {L * NAME / 1e9:,.1f} | {ranks * TOP * 12 / 1e3:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    for group_size in (1, 32):
        print(f"\nG={group_size}, D=768, K=64, B=1024, bf16 weights and embeddings, 16-bit indices\n")
        print(table(group_size, 1024))
    print("\nG=32, an epoch of as many rows as labels; k=10\n")
    print(surroundings(1024))
