"""Where should connections be? Start and regrowth of the topology against accuracy on EURLEX57K, features frozen.

    python -m bench.studies.topology [--match TEXT] [--seconds N]    measure what is missing
    python -m bench.studies.topology --report                        reports/topology.{md,png} from the rows

Rows are appended to ``reports/topology.jsonl``; a run that is there is not repeated.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from bench import environment
from bench.rows import RowFile
from bench.studies import study, training_data
from bench.topology_report import write_report
from sparse_xmc import ops
from sparse_xmc.data import to_torch_csr
from sparse_xmc.metrics import hits
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.topology.schedule import RewireSchedule

ROWS = RowFile(environment.REPOSITORY / "reports", "topology.jsonl")
REGROW_ROWS = 2048  # training rows that a gradient for regrowth is computed from


@dataclass(frozen=True)
class Run:
    """One training. fan_in 0 is a dense head; regrow "none" keeps the topology; hidden 0 has no intermediate layer."""

    fan_in: int
    start: str = "random"
    regrow: str = "none"
    seed: int = 0
    hidden: int = 0
    epochs: int = 6
    batch: int = 128
    lr: float = 5e-3
    fraction: float = 0.2
    interval: int = 100
    end: float = 0.66

    @property
    def name(self) -> str:
        return f"K={self.fan_in},{self.start},{self.regrow},seed={self.seed},hidden={self.hidden},epochs={self.epochs}"


def runs() -> Iterator[Run]:
    """The questions, the most important first."""
    yield Run(0, start="dense")
    for start, regrow in (("informed", "none"), ("random", "none"), ("random", "random"), ("informed", "gradient")):
        yield Run(64, start, regrow)
    for regrow in ("gradient", "informed"):
        yield Run(64, "random", regrow)
    for regrow in ("random", "informed"):
        yield Run(64, "informed", regrow)
    for seed in (1, 2):
        for regrow in ("none", "random"):
            yield Run(64, "random", regrow, seed=seed)
    for fan_in in (16, 32, 128):
        for start in ("random", "informed"):
            for regrow in ("none", "random", "gradient", "informed"):
                yield Run(fan_in, start, regrow)
    for start, regrow in (("random", "none"), ("random", "random"), ("random", "gradient")):
        yield Run(64, start, regrow, hidden=1024, lr=2e-3, epochs=4)
    for seed in (1, 2):
        yield Run(64, "informed", "gradient", seed=seed)
    for seed in (0, 1, 2):
        yield Run(64, "informed", "gradient", seed=seed, epochs=12)


def load_features(dimensions: int) -> training_data.DataSet:
    """Tf-idf by SVD, scaled to a mean norm of sqrt(D); computed once and kept in the cache folder."""
    folder = Path(os.environ.get("SPARSE_XMC_CACHE", tempfile.gettempdir()))
    path = folder / f"sparse_xmc_eurlex_{dimensions}.npz"
    if not path.exists():
        data = training_data.load("EURLEX57K", dimensions=dimensions)
        parts = {"train_x": data.train_x, "test_x": data.test_x}
        for split, matrix in (("train", data.train_y), ("test", data.test_y)):
            parts |= {f"{split}_ptr": matrix.indptr, f"{split}_col": matrix.indices, f"{split}_shape": matrix.shape}
        np.savez(path, **parts)
    held = np.load(path)
    targets = []
    for split in ("train", "test"):
        columns = held[f"{split}_col"]
        ones = np.ones(len(columns), np.float32)
        targets.append(sp.csr_matrix((ones, columns, held[f"{split}_ptr"]), tuple(held[f"{split}_shape"])))
    scale = math.sqrt(dimensions) / np.linalg.norm(held["train_x"], axis=1).mean()
    x, t = (np.ascontiguousarray(held[f"{split}_x"] * scale, np.float32) for split in ("train", "test"))
    return training_data.DataSet("EURLEX57K", x, targets[0], t, targets[1])


class Model(nn.Module):
    def __init__(self, data: training_data.DataSet, run: Run) -> None:
        super().__init__()
        features, labels = data.train_x.shape[1], data.train_y.shape[1]
        self.body = (
            nn.Sequential(nn.Linear(features, run.hidden), nn.ReLU(), nn.Dropout(0.3)) if run.hidden else nn.Identity()
        )
        width = run.hidden or features
        self.head: nn.Module
        if run.fan_in:
            self.head = FixedFanInLinear(width, labels, run.fan_in, seed=run.seed)
            if run.start == "informed":
                x = torch.from_numpy(data.train_x)
                self.head.indices.copy_(ops.informed_indices(x, to_torch_csr(data.train_y), run.fan_in))
        else:
            self.head = nn.Linear(width, labels)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.fill_(-6.0)

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        hidden = self.body(x)
        if isinstance(self.head, FixedFanInLinear):
            return self.head.loss(hidden, targets)
        logits = self.head(hidden)
        rows = torch.arange(len(x)).repeat_interleave(targets.crow_indices().diff())
        return (nn.functional.softplus(logits).sum() - logits[rows, targets.col_indices()].sum()) / len(x)


def precision(model: Model, data: training_data.DataSet) -> dict[str, float]:
    """P@1, 3, 5 on the test split, in percent."""
    model.eval()
    with torch.no_grad():
        blocks = torch.from_numpy(data.test_x).split(512)
        top = torch.cat([model.head(model.body(x)).topk(5).indices for x in blocks]).numpy()
    found = np.asarray(hits(top, data.test_y), dtype=np.float64)
    return {f"P@{k}": round(100 * float(found[:, :k].mean()), 2) for k in (1, 3, 5)}


def train(data: training_data.DataSet, run: Run) -> dict[str, Any]:
    torch.manual_seed(run.seed)
    order, draw = np.random.default_rng(run.seed), np.random.default_rng(run.seed + 1000)
    began = time.perf_counter()
    model = Model(data, run)
    rows = len(data.train_x)
    total = math.ceil(rows / run.batch) * run.epochs
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * min(1, s / total))))
    schedule = None
    if run.regrow != "none":
        schedule = RewireSchedule(
            model.head, total, fraction=run.fraction, interval=run.interval, end=run.end, optimizer=optimizer,
            seed=run.seed, regrow=run.regrow,
        )  # fmt: skip
    whole = to_torch_csr(data.train_y) if run.regrow == "informed" else None
    rewired = 0
    model.train()
    for _ in range(run.epochs):
        for chosen in np.array_split(order.permutation(rows), math.ceil(rows / run.batch)):
            x, targets = torch.from_numpy(data.train_x[chosen]), to_torch_csr(data.train_y[chosen])
            optimizer.zero_grad()
            model.loss(x, targets).backward()
            optimizer.step()
            rates.step()
            if schedule is not None:
                new = schedule.step(_regrow_batch(model, data, run, schedule, draw, whole))
                rewired += 0 if new is None else int(new)
    seconds = time.perf_counter() - began
    return {**asdict(run), **precision(model, data), "seconds": round(seconds, 1), "rewired": rewired}


def _regrow_batch(
    model: Model, data: training_data.DataSet, run: Run, schedule: RewireSchedule, draw: np.random.Generator, whole: Any
) -> ops.RegrowBatch | None:
    if run.regrow == "random" or not schedule.due(schedule.last_step + 1):
        return None
    with torch.no_grad():
        if whole is not None:
            return ops.RegrowBatch(model.body(torch.from_numpy(data.train_x)), targets=whole)
        chosen = draw.choice(len(data.train_x), REGROW_ROWS, replace=False)
        x = model.body(torch.from_numpy(data.train_x[chosen]))
        return ops.RegrowBatch(x, targets=to_torch_csr(data.train_y[chosen]))


if __name__ == "__main__":
    study.main(
        __doc__,
        ROWS,
        runs(),
        lambda: load_features(512),
        train,
        lambda rows, missing: write_report(rows, ROWS.path.parent, missing),
    )
