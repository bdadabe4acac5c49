"""What the fused head's choices cost in accuracy: optimizer, fused or not, format of the weights; EURLEX57K, frozen features.

    python -m bench.studies.head [--match TEXT] [--seconds N]    measure what is missing
    python -m bench.studies.head --report                        the table of the rows

Rows are appended to ``reports/head_study.jsonl``; a run that is there is not repeated.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import environment
from bench.rows import Row, RowFile
from bench.studies import study, training_data
from bench.studies.topology import load_features
from sparse_xmc import ops
from sparse_xmc.data import to_torch_csr
from sparse_xmc.metrics import hits
from sparse_xmc.models import FixedFanInLinear, QuantizedFixedFanInLinear
from sparse_xmc.optim import FusedAdagrad, FusedAdam, FusedOptimizer, FusedSGD

ROWS = RowFile(environment.REPOSITORY / "reports", "head_study.jsonl")
BATCH, FAN_IN = 128, 64


FUSED: dict[str, Callable[..., FusedOptimizer]] = {
    "sgd": FusedSGD,
    "row-adagrad": FusedAdagrad,
    "row-adam": FusedAdam,
}
UNFUSED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "adam": torch.optim.Adam,
}


@dataclass(frozen=True)
class Run:
    """One training; what it leaves in float32 is also evaluated in two narrower formats.

    weights: float32, bfloat16, or "e4m3": rounded stochastically to float8 after every step.
    scale: of e4m3, the same for all labels; numbers reach 448 times and are spaced 2^-9 times as far at zero.
    """

    optimizer: str
    lr: float
    fused: bool = True
    momentum: float = 0.0
    weights: str = "float32"
    scale: float = 1.0
    epochs: int = 5
    seed: int = 0

    @property
    def name(self) -> str:
        weights = self.weights if self.weights != "e4m3" else f"e4m3*{self.scale:g}"
        way = "fused" if self.fused else "unfused"
        options = f"lr={self.lr:g},momentum={self.momentum:g},epochs={self.epochs},seed={self.seed}"
        return f"{way},{self.optimizer},{weights},{options}"


def runs() -> Iterator[Run]:
    """The questions, the most important first."""
    for lr in (0.05, 0.1, 0.2, 0.4):
        yield Run("row-adagrad", lr)
    for lr in (5e-3, 2e-3, 1e-2):
        yield Run("adam", lr, fused=False)
    for lr in (3.0, 10.0, 1.0):
        yield Run("sgd", lr)
    yield Run("sgd", 3.0, fused=False)
    for scale in (2**-5, 1.0, 2**-7, 2**-3):
        yield Run("sgd", 3.0, weights="e4m3", scale=scale)
    yield Run("row-adagrad", 0.2, weights="e4m3", scale=2**-7)
    yield Run("sgd", 3.0, weights="bfloat16")
    yield Run("row-adagrad", 0.2, weights="bfloat16")
    for lr in (0.02, 0.05):
        yield Run("row-adam", lr)
        yield Run("adagrad", lr, fused=False)
    yield Run("row-adam", 0.01)
    yield Run("adam", 2e-2, fused=False)
    for optimizer, lr in (("row-adam", 0.05), ("row-adagrad", 0.2)):
        yield Run(optimizer, lr, seed=1)
    yield Run("adam", 2e-2, fused=False, seed=1)
    yield Run("row-adam", 0.05, weights="e4m3", scale=2**-5)
    for fused in (True, False):
        yield Run("sgd", 3.0, fused, epochs=3)
    yield Run("sgd", 3.0, epochs=3, seed=1)
    yield Run("adam", 4e-2, fused=False)
    yield Run("adagrad", 0.2, fused=False)
    yield Run("row-adam", 0.1)


def round_e4m3(weight: Tensor, scale: float, generator: torch.Generator) -> None:
    """Rounds ``weight`` stochastically to float8 e4m3 numbers times ``scale``, in place; saturates."""
    magnitude = weight.abs().div_(scale)
    exponent = torch.frexp(magnitude).exponent.sub_(1).clamp_(min=-6)
    spacing = torch.ldexp(torch.full_like(weight, 0.125), exponent)
    noise = torch.rand(weight.shape, generator=generator)
    rounded = magnitude.div_(spacing).add_(noise).floor_().mul_(spacing).clamp_(max=448.0)
    weight.copy_(rounded.mul_(scale).copysign_(weight))


def precision(head: Any, data: training_data.DataSet) -> dict[str, float]:
    """P@1, 3, 5 on the test split, in percent."""
    with torch.no_grad():
        top = torch.cat([head.topk(x, 5)[1] for x in torch.from_numpy(data.test_x).split(512)]).numpy()
    found = np.asarray(hits(top, data.test_y), dtype=np.float64)
    return {f"P@{k}": round(100 * float(found[:, :k].mean()), 2) for k in (1, 3, 5)}


def train(data: training_data.DataSet, run: Run) -> dict[str, Any]:
    order, noise = np.random.default_rng(run.seed), torch.Generator().manual_seed(run.seed)
    x, y = torch.from_numpy(data.train_x), to_torch_csr(data.train_y)
    head = FixedFanInLinear(x.shape[1], y.shape[1], FAN_IN, seed=run.seed)
    with torch.no_grad():
        head.indices.copy_(ops.informed_indices(x, y, FAN_IN))
        head.weight.zero_()
        nn.init.constant_(head.get_parameter("bias"), -6.0)
    if run.weights == "bfloat16":
        head.weight.data = head.weight.data.bfloat16()
    if run.fused:
        fused = FUSED[run.optimizer](run.lr, run.momentum, seed=run.seed)
        head.fuse_optimizer(fused)
        optimizer: torch.optim.Optimizer = fused
    else:
        options = {"momentum": run.momentum} if run.optimizer == "sgd" else {}
        optimizer = UNFUSED[run.optimizer](head.parameters(), lr=run.lr, **options)
    batches = math.ceil(len(x) / BATCH)
    total = batches * run.epochs
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: 0.5 * (1 + math.cos(math.pi * min(1, s / total))))
    for _ in range(run.epochs):
        for chosen in np.array_split(order.permutation(len(x)), batches):
            optimizer.zero_grad()
            head.loss(x[chosen], to_torch_csr(data.train_y[chosen])).backward()
            optimizer.step()
            rates.step()
            if run.weights == "e4m3":
                round_e4m3(head.weight.data, run.scale, noise)
    row = {**asdict(run), **precision(head, data), "largest": float(head.weight.detach().abs().max())}
    if run.weights == "float32":
        head.fuse_optimizer(None)
        row["as e4m3"] = precision(QuantizedFixedFanInLinear.from_layer(head), data)
        row["as bfloat16"] = precision(head.bfloat16(), data)
    return row


def print_table(rows: list[Row], missing: list[str]) -> None:
    """Mean over seeds of the stored rows, as markdown."""
    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["name"].rsplit(",seed", 1)[0]].append(row)
    lines = ["| run | seeds | P@1 | P@3 | P@5 |", "|---|---|---|---|---|"]
    for name, group in groups.items():
        means = [f"{np.mean([row[f'P@{k}'] for row in group]):.2f}" for k in (1, 3, 5)]
        lines.append(f"| {name} | {len(group)} | {' | '.join(means)} |")
    print("\n".join([*lines, f"\nnot run: {', '.join(missing) or 'none'}"]))


if __name__ == "__main__":
    study.main(__doc__, ROWS, runs(), lambda: load_features(512), train, print_table)
