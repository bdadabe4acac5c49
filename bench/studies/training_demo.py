"""A fixed fan-in head and a dense head trained side by side on real data: same features, same intermediate layer, same
loss, schedule and dense learning rate. Prints precision at 1, 3, 5 and appends a row per head.

The fixed fan-in head is used as the README says: prior for the bias, learning rates by fan-in, the loss without logits.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from bench import environment
from bench.rows import RowFile
from bench.studies import training_data
from sparse_xmc.data import DenseInputs, to_torch_csr
from sparse_xmc.metrics import Truth, ranking_metrics
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim import parameter_groups


@dataclass(frozen=True)
class Settings:
    """Of a training run. fan_in None is the dense head."""

    fan_in: int | None
    hidden: int
    epochs: int
    batch: int = 128
    lr: float = 2e-3
    dropout: float = 0.5
    seed: int = 0
    rewire_steps: int = 100
    rewire_fraction: float = 0.2
    rewire_until: float = 0.66


DEFAULTS = {"Bibtex": (1024, 12, 64), "docstrings": (1024, 12, 64), "EURLEX57K": (4096, 9, 64)}


class _Model(nn.Module):
    def __init__(self, features: int, labels: int, prior: float, settings: Settings) -> None:
        super().__init__()
        self.intermediate = nn.Linear(features, settings.hidden)
        self.dropout = nn.Dropout(settings.dropout)
        self.head: Any
        if settings.fan_in is None:
            self.head = nn.Linear(settings.hidden, labels)
            nn.init.constant_(self.head.bias, math.log(prior / (labels - prior)))
        else:
            self.head = FixedFanInLinear(settings.hidden, labels, settings.fan_in, prior=prior, seed=settings.seed)

    def features(self, x: Tensor) -> Tensor:
        return self.dropout(torch.relu(self.intermediate(x)))

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        if isinstance(self.head, FixedFanInLinear):
            return self.head.loss(self.features(x), targets)
        return _loss(self.head(self.features(x)), targets)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    """BCE: sum over labels, mean over rows."""
    crow, labels = targets.crow_indices(), targets.col_indices()
    rows = torch.arange(len(crow) - 1).repeat_interleave(crow.diff())
    return (softplus(logits).sum() - logits[rows, labels].sum()) / len(logits)


def train(data: training_data.DataSet, settings: Settings) -> dict[str, Any]:
    """Trains one head; returns its metrics in percent, seconds and bytes."""
    torch.manual_seed(settings.seed)
    order = np.random.default_rng(settings.seed)
    inputs, num_rows = DenseInputs(data.train_x), len(data.train_x)
    model = _Model(data.train_x.shape[1], data.train_y.shape[1], data.train_y.nnz / num_rows, settings)
    optimizer = torch.optim.Adam(parameter_groups(model, settings.lr))
    rates = [group["lr"] for group in optimizer.param_groups]
    total = math.ceil(num_rows / settings.batch) * settings.epochs
    warm_up = max(2, total // 10) / total  # of one step there is no slope
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=total, pct_start=warm_up)
    start, step = time.perf_counter(), 0
    for epoch in range(settings.epochs):
        model.train()
        shuffled, running = order.permutation(num_rows), 0.0
        for first in range(0, num_rows, settings.batch):
            rows = shuffled[first : first + settings.batch]
            loss = model.loss(inputs.batch(rows), to_torch_csr(data.train_y[rows]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            running += loss.item() * len(rows)
            if _is_rewire_step(step, total, settings):
                model.head.rewire_(fraction=settings.rewire_fraction, optimizer=optimizer)
        kind = "dense" if settings.fan_in is None else f"fan-in {settings.fan_in}"
        print(f"  {kind:<10} epoch {epoch + 1:2}/{settings.epochs}  loss {running / num_rows:8.4f}", flush=True)
    seconds = time.perf_counter() - start
    head_bytes = sum(t.nbytes for t in [*model.head.parameters(), *model.head.buffers()])
    return {**_evaluate(model, data), "seconds": seconds, "head_bytes": head_bytes}


def _is_rewire_step(step: int, total: int, settings: Settings) -> bool:
    return settings.fan_in is not None and step % settings.rewire_steps == 0 and step < settings.rewire_until * total


def _evaluate(model: nn.Module, data: training_data.DataSet) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        top = np.concatenate(
            [model(torch.from_numpy(part)).topk(5).indices.numpy() for part in np.array_split(data.test_x, 20)]
        )
    metrics = ranking_metrics(top, Truth(data.test_y))
    return {name: metrics[name] for name in ("P@1", "P@3", "P@5")}


def main(arguments: argparse.Namespace) -> int:
    """Trains the heads asked for and prints them side by side."""
    name = training_data.choose(arguments.data)
    hidden, epochs, fan_in = DEFAULTS[name]
    data = training_data.load(name)
    shape = (*data.train_x.shape, data.train_y.shape[1], len(data.test_x))
    print("{}: {:,} training rows, {:,} features, {:,} labels, {:,} test rows".format(name, *shape))
    file, described = RowFile(arguments.out), environment.describe("cpu")
    results: dict[str, dict[str, Any]] = {}
    for head in arguments.heads or ("fixed", "dense"):
        settings = Settings(None if head == "dense" else fan_in, hidden, arguments.epochs or epochs)
        results[head] = train(data, settings)
        row = {"kind": "training", "data": name, "head": head, **asdict(settings), **results[head]}
        file.append({**row, "status": "ok", **described})
    print(f"\n{name}, intermediate layer of {hidden}:")
    print(f"{'head':<16}{'P@1':>8}{'P@3':>8}{'P@5':>8}{'head MiB':>11}{'seconds':>10}")
    for head, result in results.items():
        scores = "".join(f"{result[metric]:8.2f}" for metric in ("P@1", "P@3", "P@5"))
        title = "dense" if head == "dense" else f"fan-in {fan_in}"
        print(f"{title:<16}{scores}{result['head_bytes'] / 2**20:11.2f}{result['seconds']:10.1f}")
    return 0
