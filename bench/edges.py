"""Shapes at the edge, compiled for GPUs that are not there: sizes of 1, no multiples of 16, one more than a block, many
labels in a group, in every dtype and with every kind of state. What spills registers, races or does not fit is listed.

``python -m bench edges --out FOLDER`` writes a row per kernel to ``edges.jsonl``, in place of those of an earlier run for the
same target and Triton release; some hundred compilations a minute and core.
"""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton

from bench import offline

NAME = "edges.jsonl"


class Edge(NamedTuple):
    """Sizes of a layer and a batch."""

    B: int
    D: int
    L: int
    K: int
    G: int


EDGES = (
    *(Edge(128, 768, 20_011, K, G) for K in (1, 15, 16, 33, 64, 128, 256) for G in (1, 32)),
    *(Edge(128, 768, 20_011, 64, G) for G in (2, 16, 17, 64, 100, 128)),
    *(Edge(B, 768, 20_011, K, G) for B in (1, 17, 512) for K, G in ((32, 1), (64, 32))),
    Edge(128, 1, 20_011, 1, 1),
    Edge(128, 1, 20_011, 1, 32),
    Edge(128, 768, 1, 32, 1),
    Edge(128, 70_000, 20_011, 32, 1),
    Edge(128, 70_000, 20_011, 64, 32),
)
DTYPES = (
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.float64, torch.float64),
)


def calls(edge: Edge, dtypes: tuple[torch.dtype, torch.dtype]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every launcher on tensors of these sizes that have no memory."""
    from sparse_xmc.ops._arguments import compute_dtype, index_dtype
    from sparse_xmc.ops._contract import Layer, Needed, Objective, Positives, Rewiring, Scaling
    from sparse_xmc.ops.triton_kernels import linear, loss, prune_regrow, topk
    from sparse_xmc.ops.update import Update

    B, D, L, K, G = edge
    dtype, weight_dtype = dtypes

    def empty(*size: int, dtype: torch.dtype = weight_dtype) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    x, dy = empty(B, D, dtype=dtype), empty(B, -(-L // 16) * 16, dtype=dtype)[:, :L]
    weight, bias, indices = empty(L, K), empty(L), empty(-(-L // G), K, dtype=index_dtype(D))
    yield "forward", lambda: linear.forward(x, weight, indices, bias, G)
    for deterministic in (False, True):
        name = "backward_input" + ", deterministic" * deterministic
        yield name, lambda d=deterministic: linear.backward_input(dy, weight, indices, D, G, d)
    yield "backward_weight", lambda: linear.backward_weight(dy, x, indices, G, weight_dtype)

    layer = Layer(weight, indices, bias, G)
    positives = Positives(empty(640, dtype=torch.int64), empty(640, dtype=torch.int32), B, L)
    problem = (x, layer, positives, Objective())
    yield "gradients", lambda: loss.loss_gradients(*problem, Scaling(), Needed(True, True, True))
    moments = [empty(L, dtype=compute_dtype(dtype)) for _ in "wb"]
    correction = empty(dtype=compute_dtype(dtype))
    for name, update in (
        ("SGD", Update(lr=0.1)),
        ("momentum", Update(empty(L, K), None, empty(L), None, lr=0.1, momentum=0.9)),
        ("Adam", Update(empty(L, K), moments[0], empty(L), moments[1], lr=0.1, momentum=0.9, correction=correction)),
    ):
        for need_loss in (True, False):
            full = f"step, {name}" + ", no loss" * (not need_loss)
            yield (
                full,
                lambda u=update, n=need_loss: loss.loss_step_(*problem, Scaling(2.0), u, need_loss=n, need_x=True),
            )
    if dtype != torch.float64:
        yield "topk", lambda: topk.topk(x, weight, indices, bias, min(5, L), G, None, None)
    if D > K:
        rewiring = Rewiring(D, G, False, 1, fixed=max(1, min(K, D - K) // 4))
        yield "rewire", lambda: prune_regrow.rewire_(weight, indices, [weight], [], rewiring)


def _rows(edge: Edge, dtypes: tuple[torch.dtype, torch.dtype], target: str, match: str) -> list[dict[str, Any]]:
    """A row for each different kernel that the launchers start on these sizes."""
    rows, seen = [], set()
    chosen = offline.TARGETS[target]
    kinds = "-".join(str(d).removeprefix("torch.") for d in dict.fromkeys(dtypes))
    for name, call in calls(edge, dtypes):
        if not re.search(match, name):
            continue
        row: dict[str, Any] = {**edge._asdict(), "dtypes": kinds, "call": name, "target": target}
        row["triton"] = triton.__version__
        try:
            for launch in offline.recorded(call, chosen):
                compiled = offline.compile_for(launch, chosen)
                facts = offline.facts(compiled, chosen)
                key = (launch.kernel.__name__, facts)
                if str(key) not in seen:
                    seen.add(str(key))
                    problems = offline.problems(facts, chosen, wgmma=False)
                    own = {"kernel": launch.kernel.__name__, "registers": facts.registers, "spilled": facts.spilled}
                    rows.append({**row, **own, "shared": facts.shared, "problems": problems})
        except Exception as error:  # whatever a compiler may raise is a result
            rows.append({**row, "kernel": None, "problems": [f"{type(error).__name__}: {str(error)[-200:]}"]})
    return rows


def by_nature(row: dict[str, Any]) -> bool:
    """Whether a spill stands for what is there for checks of gradients only, and has no tile to be made smaller."""
    return row["dtypes"] == "float64" and all(problem.startswith("spills") for problem in row["problems"])


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows in a folder."""
    path = folder / NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _drop(folder: Path, targets: list[str], match: str) -> None:
    """Takes away the rows that a sweep is about to write anew."""
    rows = read(folder)
    kept = [
        row
        for row in rows
        if row["target"] not in targets or row["triton"] != triton.__version__ or not re.search(match, row["call"])
    ]
    if len(kept) < len(rows):
        (folder / NAME).write_text("".join(json.dumps(row) + "\n" for row in kept))


def sweep(folder: Path, targets: list[str], match: str, jobs: int = 2) -> int:
    """Compiles all edges, writes the rows, prints what is wrong; 1 if something is that is not so by nature."""
    tasks = [(edge, dtypes, target, match) for target in targets for edge in EDGES for dtypes in DTYPES]
    folder.mkdir(parents=True, exist_ok=True)
    _drop(folder, targets, match)
    number = bad = 0
    with (
        ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool,
        open(folder / NAME, "a") as file,
    ):
        for rows in pool.map(_rows, *zip(*tasks, strict=True)):
            for row in rows:
                number += 1
                file.write(json.dumps(row) + "\n")
                if row["problems"]:
                    bad += not by_nature(row)
                    sizes = " ".join(f"{name}={row[name]}" for name in Edge._fields)
                    note = " (by nature)" * by_nature(row)
                    what = f"{row['kernel']} of {row['call']}, {row['dtypes']}, {sizes}"
                    print(f"{row['target']}: {what}: {'; '.join(row['problems'])}{note}", flush=True)
            file.flush()
    print(f"Triton {triton.__version__}: {number} kernels on {', '.join(targets)}, {bad} with a problem")
    return int(bad > 0)
