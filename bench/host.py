"""The suite ``host``: what a call costs the host beside its kernel, on a layer so small that the kernel hardly counts.

Twice, in a process each: on the CPU kernels, whose arithmetic is included, and on the Triton launchers with a driver that
launches into nothing (``stub_driver``), to which a GPU's driver adds 2 to 4 us a launch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

B, D, L, K = 8, 64, 128, 8
REPEATS, CALLS = 60, 10


def calls(group_size: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every op on one layer, by name."""
    import torch

    from sparse_xmc import ops
    from sparse_xmc.optim.fused import FusedAdam, FusedSGD

    x, weight, bias, dy = torch.randn(B, D), torch.randn(L, K), torch.zeros(L), torch.ones(B, L)
    indices = torch.arange(K).repeat(-(-L // group_size), 1).to(torch.uint16)
    targets = torch.eye(B, L).to_sparse_csr()
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]

    def backward(call: Callable[[], torch.Tensor], gradient: torch.Tensor | None) -> None:
        call().backward(gradient)
        for leaf in leaves:
            leaf.grad = None

    def step(kind: Any, targets: Any) -> Callable[[], Any]:
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        optimizer = kind(1e-3)
        optimizer.attach(w, b)
        return lambda: ops.fixed_fan_in_step_(x, w, indices, b, targets, optimizer, group_size=group_size)

    def linear(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ops.fixed_fan_in_linear(x, w, indices, b, group_size=group_size)

    def loss() -> torch.Tensor:
        return ops.fixed_fan_in_loss(leaves[0], leaves[1], indices, leaves[2], targets, group_size=group_size)

    dense = torch.nn.Linear(D, L)
    yield "nn.Linear forward + backward", lambda: backward(lambda: dense(leaves[0]), dy)
    yield "forward", lambda: linear(x, weight, bias)
    yield "forward + backward", lambda: backward(lambda: linear(*leaves), dy)
    yield "loss, forward + backward", lambda: backward(loss, None)
    yield "step, SGD", step(FusedSGD, targets)
    yield "step, SGD, sorted targets", step(FusedSGD, ops.sort_targets(targets, L))
    yield "step, Adam", step(FusedAdam, targets)
    yield "top-k", lambda: ops.fixed_fan_in_topk(x, weight, indices, bias, k=5, group_size=group_size)
    places = ops.init_indices(indices.shape[0], D, K, seed=0) if not stubbed() else indices.clone()
    rows = weight.clone()
    yield "rewire", lambda: ops.prune_regrow_(rows, places, D, fraction=0.25, seed=1, group_size=group_size)


def stubbed() -> bool:
    """Whether this process measures the Triton launchers."""
    return os.environ.get("SPARSE_XMC_HOST_STUB") == "1"


def worker() -> None:
    """Prints a row for every call: least time of a call over ``REPEATS`` rounds, in microseconds."""
    import torch

    torch.set_num_threads(1)
    if stubbed():
        from bench import stub_driver

        stub_driver.use()
    for group_size in (1, 32):
        for name, call in calls(group_size):
            for _ in range(CALLS):
                call()
            times = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                times.append((time.perf_counter() - start) / CALLS * 1e6)
            print(json.dumps({"call": name, "G": group_size, "us": round(min(times), 1)}), flush=True)


def measure(out: Path) -> int:
    """Runs both processes, writes ``host.jsonl`` and prints the table."""
    rows: list[dict[str, Any]] = []
    for path in ("cpu", "triton, stub driver"):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment.update(SPARSE_XMC_AUTOTUNE="off", SPARSE_XMC_HOST_STUB=str(int(path != "cpu")))
        command = [sys.executable, "-c", "from bench.host import worker; worker()"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        rows += [{"path": path, **json.loads(line)} for line in done.stdout.splitlines()]
    out.mkdir(parents=True, exist_ok=True)
    (out / "host.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"us of a call at B={B} D={D} L={L} K={K}, float32, one thread: least of {REPEATS} x {CALLS}")
    for row in rows:
        print(f"{row['path']:20} G={row['G']:<3} {row['call']:30} {row['us']:8.1f}")
    return 0
