"""A multi-label loss over a sample of the labels instead of all: does it pay for a head trained by gradients?

    SPARSE_XMC_DATA=... python -m bench.studies.hard_negatives [--match TEXT] [--seconds N]    measure what is missing
    python -m bench.studies.hard_negatives --report                                            the tables and the figure

Of a batch every row meets the labels that some row has or finds hard (the best of its wrong ones, by the model as it was
when the epoch began), and up to ``UNIFORM`` others drawn evenly, which stand for all that are left: an unbiased estimate of the
loss over all labels. For comparison without the drawn ones, and without the hard ones. Accuracy: 512 frozen features of
EURLEX57K, a trained layer of 512; the last 5,000 training rows are held out and judged, the test split is not touched. Time:
random rows and labels. Rows are appended to ``reports/hard_negatives.jsonl``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import environment
from bench.hard_negatives_report import FIGURE, draw, table
from bench.rows import RowFile
from bench.studies import study
from bench.studies.topology import load_features
from sparse_xmc import ops
from sparse_xmc.data import to_torch_csr
from sparse_xmc.metrics import hits
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim import FusedAdagrad, RowSparseAdagrad

ROWS = RowFile(environment.REPOSITORY / "reports", "hard_negatives.jsonl")
WIDTH, FAN_IN, BATCH, HELD_OUT = 512, 32, 128, 5_000
HARD, UNIFORM, POSITIVES = 10, 1024, 5


@dataclass(frozen=True)
class Training:
    """``lr``: of the head; ``drawn``: how many labels are drawn evenly where the method draws any."""

    method: str
    lr: float
    seed: int = 0
    drawn: int = UNIFORM
    epochs: int = 3

    @property
    def name(self) -> str:
        drawn = f",drawn={self.drawn}" if "uniform" in self.method else ""
        return f"accuracy,{self.method}{drawn},lr={self.lr:g},seed={self.seed}"


@dataclass(frozen=True)
class Timing:
    labels: int

    @property
    def name(self) -> str:
        return f"time,L={self.labels}"


def runs() -> Iterator[Training | Timing]:
    """The questions, the most important first."""
    for labels in (4_096, 16_384, 65_536, 262_144):
        yield Timing(labels)
    for lr in (0.1, 0.2):
        yield Training("exact", lr)
        yield Training("hard", lr)
        for drawn in (UNIFORM, 64):  # of 4,108 labels: a quarter, and 1.6 %, as 1,024 are of 65,000
            yield Training("hard and uniform", lr, drawn=drawn)
            yield Training("uniform", lr, drawn=drawn)


class SampledHead(nn.Module):
    """A loss of a fixed fan-in head that reads a part of the labels. The parameters are the head's own memory; their gradients
    are sparse."""

    def __init__(self, head: FixedFanInLinear) -> None:
        super().__init__()
        assert head.bias is not None
        self.weight, self.bias = head.weight, nn.Parameter(head.bias.detach()[:, None])  # a view
        self.indices = head.indices

    def part(self, x: Tensor, labels: Tensor, targets: tuple[Tensor, Tensor]) -> Tensor:
        """Loss over ``labels [n]``, ascending; ``targets`` are positions among them."""
        weight, bias = (F.embedding(labels, table, sparse=True) for table in (self.weight, self.bias))
        return ops.fixed_fan_in_loss(x, weight, self.indices[labels], bias[:, 0], targets)

    def loss(self, x: Tensor, targets: Tensor, hard: Tensor | None, uniform: int) -> Tensor:
        """``hard``: labels to read beside the targets; ``uniform``: how many of the others are drawn."""
        crow, columns = targets.crow_indices(), targets.col_indices().long()
        read = torch.unique(columns if hard is None else torch.cat([columns, hard.flatten()]))
        total = self.part(x, read, (crow, torch.searchsorted(read, columns)))
        if not uniform:
            return total
        labels = len(self.weight)
        drawn = torch.unique(torch.randint(labels, (uniform,)))
        drawn = drawn[~torch.isin(drawn, read)]
        if not len(drawn):
            return total
        share = (labels - len(read)) / len(drawn)
        return total + share * self.part(x, drawn, (torch.zeros_like(crow), columns[:0]))


@torch.no_grad()
def hardest(body: nn.Module, head: FixedFanInLinear, x: Tensor, y: Any) -> Tensor:
    """The ``HARD`` best labels of every row that are not its own ``[N, HARD]``; an own one stands where there are too few."""
    found = []
    most = HARD + int(np.diff(y.indptr).max())
    for start in range(0, len(x), 500):
        top = head.topk(body(x[start : start + 500]), most)[1]
        own = torch.from_numpy(y[start : start + 500].toarray() > 0).gather(1, top)
        found.append(top.gather(1, own.int().argsort(dim=1, stable=True)[:, :HARD]))
    return torch.cat(found)


@torch.no_grad()
def precision(body: nn.Module, head: FixedFanInLinear, x: Tensor, y: Any) -> list[float]:
    top = torch.cat([head.topk(body(part), 5)[1] for part in x.split(500)]).numpy()
    found = np.asarray(hits(top, y), dtype=np.float64)
    return [round(100 * float(found[:, :k].mean()), 2) for k in (1, 3, 5)]


features = functools.cache(lambda: load_features(WIDTH))


def train(run: Training) -> dict[str, Any]:
    torch.manual_seed(run.seed)
    data = features()
    x, y = torch.from_numpy(data.train_x), data.train_y
    kept = len(x) - HELD_OUT
    prior = torch.from_numpy(np.asarray(y[:kept].sum(0)).ravel()) / kept
    head = FixedFanInLinear(WIDTH, y.shape[1], FAN_IN, seed=run.seed, prior=prior)
    body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    sampled = SampledHead(head)
    of_head: torch.optim.Optimizer
    if run.method == "exact":
        of_head = FusedAdagrad(run.lr)
        head.fuse_optimizer(of_head)
    else:
        of_head = RowSparseAdagrad(sampled.parameters(), run.lr)
    of_body = torch.optim.AdamW(body.parameters(), lr=1e-3, weight_decay=0.0)
    steps = run.epochs * (kept // BATCH)
    decays = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 - step / steps) for o in (of_head, of_body)]
    began, mining, curve = time.process_time(), 0.0, []
    for _ in range(run.epochs):
        hard, start = None, time.process_time()
        if run.method.startswith("hard"):
            hard = hardest(body, head, x[:kept], y[:kept])
        mining += time.process_time() - start
        for rows in torch.randperm(kept).split(BATCH)[: kept // BATCH]:
            hidden, targets = body(x[rows]), to_torch_csr(y[rows.numpy()])
            if run.method == "exact":
                loss = head.loss(hidden, targets)
            else:
                uniform = run.drawn if "uniform" in run.method else 0
                loss = sampled.loss(hidden, targets, None if hard is None else hard[rows], uniform)
            for optimizer in (of_head, of_body):
                optimizer.zero_grad()
            loss.backward()
            for optimizer, decay in zip((of_head, of_body), decays, strict=True):
                optimizer.step()
                decay.step()
        spent = time.process_time() - began
        curve.append(precision(body, head, x[kept:], y[kept:]))
        began = time.process_time() - spent  # judging does not count
    at = dict(zip(("P@1", "P@3", "P@5"), curve[-1], strict=True))
    return {
        **asdict(run),
        **at,
        "P@1 by epoch": [c[0] for c in curve],
        "seconds": round(spent, 1),
        "mining": round(mining, 1),
    }


def measure(run: Timing) -> dict[str, Any]:
    """Milliseconds of CPU time per step on one batch: of the head alone, backward and update included."""
    torch.manual_seed(0)
    head = FixedFanInLinear(WIDTH, run.labels, FAN_IN, seed=0)
    sampled = SampledHead(head)
    x = torch.randn(BATCH, WIDTH, requires_grad=True)
    targets = to_torch_csr(random_targets(run.labels))
    hard = torch.randint(run.labels, (BATCH, HARD))
    few = FixedFanInLinear(WIDTH, min(run.labels, BATCH * (HARD + POSITIVES) + UNIFORM), FAN_IN, seed=0)
    few_targets = to_torch_csr(random_targets(few.out_features))
    for layer in (head, few):
        layer.fuse_optimizer(FusedAdagrad(0.01))
    sparse = RowSparseAdagrad(sampled.parameters(), 0.01)

    def sampled_step() -> None:
        sampled.loss(x, targets, hard, UNIFORM).backward()
        sparse.step()
        sparse.zero_grad()

    calls: dict[str, Callable[[], object]] = {
        "exact": lambda: head.step(x, targets),
        "sampled": sampled_step,
        "mining": lambda: head.topk(x.detach(), HARD + POSITIVES),
        "few labels": lambda: few.step(x, few_targets),
    }
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compiles
    for _ in range(7):
        for name, call in calls.items():
            began = time.process_time()
            call()
            found[name].append(1e3 * (time.process_time() - began))
    return {**asdict(run), **{f"{name} ms": round(float(np.median(took)), 2) for name, took in found.items()}}


def random_targets(labels: int) -> sp.csr_matrix:
    columns = np.random.default_rng(0).integers(0, labels, BATCH * POSITIVES)
    rows = np.arange(BATCH).repeat(POSITIVES)
    return sp.csr_matrix((np.ones(len(columns), np.float32), (rows, columns)), (BATCH, labels))


if __name__ == "__main__":
    study.main(
        __doc__,
        ROWS,
        runs(),
        lambda: None,
        lambda _, run: train(run) if isinstance(run, Training) else measure(run),
        study.printed(table, draw, FIGURE),
    )
