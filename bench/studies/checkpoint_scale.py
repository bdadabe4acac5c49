"""Checkpoints of a wide head: time against the disk's, memory above the head's, bits after resuming, a writer that is killed.

    python -m bench.studies.checkpoint_scale --labels 8600000 --fan-in 64 --folder /a/disk

Linux only: memory is that of ``/proc/self/status``. Each part runs in a process of its own; the page cache is written back
and, for the figures "from disk", dropped for the files in question before reading.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparse_xmc.distributed import checkpoint
from sparse_xmc.models import FixedFanInLinear

D = 768
_PIECE = 1 << 24


def head(labels: int, fan_in: int, seed: int | None) -> tuple[FixedFanInLinear, dict[str, torch.optim.Optimizer]]:
    """A bf16 head and an optimizer whose momentum is set; without a seed the numbers are all 0 and 0, 1, 2, ..."""
    layer = FixedFanInLinear(D, labels, fan_in, dtype=torch.bfloat16, device="meta").to_empty(device="cpu")
    if seed is None:
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
        layer.indices.copy_(torch.arange(fan_in).to(layer.indices.dtype))
    else:
        layer.reset_parameters(seed)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    if seed is not None:
        for parameter in layer.parameters():
            optimizer.state[parameter]["momentum_buffer"] = parameter.detach() * 0.5
    return layer, {"sgd": optimizer}


def digest(layer: FixedFanInLinear, optimizers: dict[str, torch.optim.Optimizer]) -> int:
    """A CRC-32 of all tensors."""
    state = [entry["momentum_buffer"] for entry in optimizers["sgd"].state.values()]
    crc = 0
    for tensor in (layer.weight.detach(), layer.indices, layer.bias.detach(), *state):
        crc = zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return crc


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def watched(work: Callable[[], object]) -> dict[str, float]:
    """Seconds, CPU seconds, and the most memory above that at the begin: of this process, and of it with mapped files."""
    over, most = threading.Event(), [0, 0]

    def watch() -> None:
        while not over.wait(0.005):
            most[0] = max(most[0], _status("RssAnon"))
            most[1] = max(most[1], _status("VmRSS"))

    before = [_status("RssAnon"), _status("VmRSS")]
    thread = threading.Thread(target=watch)
    thread.start()
    began, cpu = time.monotonic(), time.process_time()
    work()
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    over.set()
    thread.join()
    extra = [max(0, top - first) for top, first in zip(most, before, strict=True)]
    return {"seconds": seconds, "cpu seconds": cpu, "extra bytes": extra[0], "with mapped files": extra[1]}


def forget(folder: str) -> None:
    """Drops the files of a folder from the page cache."""
    for path in Path(folder).iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk(folder: str, size: int) -> dict[str, float]:
    """Seconds in which a plain file of this size is written and flushed, and read again from the disk and from memory."""
    place = os.path.join(folder, "plain")
    os.makedirs(place)
    piece = memoryview(bytearray(os.urandom(_PIECE)))
    began = time.monotonic()
    with open(os.path.join(place, "file"), "wb") as file:
        for _ in range(size // _PIECE + 1):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    found = {"write": time.monotonic() - began}
    for name in ("read from disk", "read from memory"):
        if name == "read from disk":
            forget(place)
        began = time.monotonic()
        with open(os.path.join(place, "file"), "rb", buffering=0) as plain:
            while plain.readinto(piece):
                pass
        found[name] = time.monotonic() - began
    shutil.rmtree(place)
    return found


def apart(part: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(part, arguments)


def saving(folder: str, labels: int, fan_in: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    layer, optimizers = head(labels, fan_in, 0)
    checkpoint.save(os.path.join(folder, "warm"), *head(10, 4, 0), {"step": 0})
    found = watched(lambda: checkpoint.save(os.path.join(folder, "head"), layer, optimizers, {"step": 1}))
    state = sum(entry["momentum_buffer"].nbytes for entry in optimizers["sgd"].state.values())
    return {**found, "held": layer.num_bytes() + state, "digest": digest(layer, optimizers)}


def loading(folder: str, labels: int, fan_in: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    layer, optimizers = head(labels, fan_in, None)
    checkpoint.load(os.path.join(folder, "warm"), *head(10, 4, None))
    found = watched(lambda: checkpoint.load(os.path.join(folder, "head"), layer, optimizers))
    return {**found, "digest": digest(layer, optimizers)}


def _write_again(folder: str, labels: int, fan_in: int) -> None:
    torch.set_num_threads(1)
    checkpoint.save(os.path.join(folder, "head"), *head(labels, fan_in, 1), {"step": 2})


def kill_a_writer(folder: str, labels: int, fan_in: int, size: int) -> int:
    """Kills a process that replaces the checkpoint, once half of it is written; how many bytes it had written."""
    process = multiprocessing.get_context("spawn").Process(target=_write_again, args=(folder, labels, fan_in))
    process.start()
    partial, written = Path(folder, "head.partial"), 0
    while written < size / 2 and process.is_alive():
        time.sleep(0.01)
        written = sum(path.stat().st_size for path in partial.iterdir()) if partial.is_dir() else 0
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    return written


def report(folder: str, labels: int, fan_in: int) -> str:
    """The measurements as Markdown.

    Raises:
        AssertionError: what was read is not what was written, or the old checkpoint did not outlive the killed writer.
    """
    saved = apart(saving, folder, labels, fan_in)
    size = sum(path.stat().st_size for path in Path(folder, "head").iterdir())
    plain = apart(disk, folder, size)
    forget(os.path.join(folder, "head"))
    cold, warm = (apart(loading, folder, labels, fan_in) for _ in range(2))
    assert cold["digest"] == warm["digest"] == saved["digest"], "other bits after loading"
    written = kill_a_writer(folder, labels, fan_in, size)
    assert apart(loading, folder, labels, fan_in)["digest"] == saved["digest"], "the old checkpoint is not whole"
    lines = [
        f"{labels:,} labels of {fan_in} connections, bf16 with momentum, {size / 1e9:.2f} GB on disk, "
        f"{saved['held'] / 1e9:.2f} GB held",
        "",
        "| | seconds | GB/s | a plain file's seconds | CPU seconds | memory above the head's | with mapped files |",
        "|---|---|---|---|---|---|---|",
    ]
    rows = (
        ("write", saved, "write"),
        ("read from disk", cold, "read from disk"),
        ("read again", warm, "read from memory"),
    )
    for name, found, like in rows:
        share = [f"{found[key] / saved['held']:.1%}" for key in ("extra bytes", "with mapped files")]
        lines.append(
            f"| {name} | {found['seconds']:.1f} | {size / found['seconds'] / 1e9:.2f} | {plain[like]:.1f} | "
            f"{found['cpu seconds']:.1f} | {share[0]} | {share[1]} |"
        )
    lines += [
        "",
        f"Killed after {written / 1e9:.2f} GB of replacing it, a writer left the old checkpoint whole, bit for bit.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=8_600_000)
    parser.add_argument("--fan-in", type=int, default=64)
    parser.add_argument("--folder", required=True, help="made for this, and removed")
    options = parser.parse_args()
    os.makedirs(options.folder)
    try:
        print(report(options.folder, options.labels, options.fan_in))
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
