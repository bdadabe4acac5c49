"""A sparse layer in the place of a dense one, at the dense one's learning rate: does the model learn as much in as many steps?

    python -m bench.studies.drop_in [--match TEXT] [--seconds N]    measure what is missing
    python -m bench.studies.drop_in --report                        the table of the rows

A small classifier over many labels, few of which occur: rows near 64 centres, each with two labels of its own. Its output
layer is an ``nn.Linear``, or what ``sparsify_(..., prior=2)`` makes of that with rates of ``parameter_groups``; or with only
one of the two. Rows are appended to ``reports/drop_in.jsonl``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import environment
from bench.rows import Row, RowFile
from bench.studies import study
from sparse_xmc.models import sparsify_
from sparse_xmc.optim import FusedAdagrad, FusedAdam, FusedOptimizer, FusedSGD, parameter_groups, rate_multiplier

ROWS = RowFile(environment.REPOSITORY / "reports", "drop_in.jsonl")
POSITIVES, CENTRES = 2, 64
FUSED: dict[str, tuple[Callable[..., FusedOptimizer], str]] = {
    "FusedAdam": (FusedAdam, "AdamW"),
    "FusedSGD": (FusedSGD, "SGD"),
    "FusedAdagrad": (FusedAdagrad, "Adagrad"),
}
RATES = {"AdamW": 5e-3, "SGD": 0.3, "FusedAdam": 5e-3, "FusedSGD": 0.3, "FusedAdagrad": 5e-2}


@dataclass(frozen=True)
class Run:
    """``fan_in`` 0 is the dense layer. Fused optimizers are those of the head; the dense model has the unfused rule."""

    optimizer: str
    fan_in: int
    seed: int
    prior: bool = True
    rule: bool = True
    labels: int = 5000
    features: int = 256
    rows: int = 512
    batch: int = 64
    steps: int = 48

    @property
    def name(self) -> str:
        head = f"K={self.fan_in}" if self.fan_in else "dense"
        without = ("" if self.prior else ",no prior") + ("" if self.rule else ",unscaled")
        return f"{self.optimizer},{head}{without},L={self.labels},seed={self.seed}"


def runs() -> Iterator[Run]:
    """The questions, the most important first."""
    for seed in range(3):
        for optimizer in RATES:
            for fan_in in (0, 16, 32, 64):
                yield Run(optimizer, fan_in, seed)
        for fan_in in (0, 16, 32, 64):
            yield Run("AdamW", fan_in, seed, prior=False)
        for fan_in in (16, 32, 64):
            yield Run("AdamW", fan_in, seed, rule=False)
            yield Run("SGD", fan_in, seed, rule=False)


def problem(run: Run) -> tuple[Tensor, Tensor]:
    """Rows ``[N, 64]`` and their label ids ``[N, 2]``."""
    generator = torch.Generator().manual_seed(run.seed)
    centres = torch.randn(CENTRES, 64, generator=generator)
    labels = torch.randperm(run.labels, generator=generator)[: CENTRES * POSITIVES].view(CENTRES, POSITIVES)
    centre = torch.randint(CENTRES, (run.rows,), generator=generator)
    return centres[centre] + 0.3 * torch.randn(run.rows, 64, generator=generator), labels[centre]


def make_model(run: Run) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(64, run.features), nn.ReLU(), nn.Linear(run.features, run.labels))
    if run.fan_in:
        sparsify_(model, "2", run.fan_in, prior=POSITIVES if run.prior else None)
    elif run.prior:
        nn.init.constant_(model[2].get_parameter("bias"), math.log(POSITIVES / (run.labels - POSITIVES)))
    return model


def make_optimizers(run: Run, model: nn.Sequential) -> list[torch.optim.Optimizer]:
    """That of everything, or of the body and a fused one of the head."""
    rate, optimizers = RATES[run.optimizer], []
    kind, plain = FUSED.get(run.optimizer, (None, run.optimizer))
    if kind is not None and run.fan_in:
        optimizers.append(kind(rate * (rate_multiplier(model[2]) if run.rule else 1.0)))
        model[2].fuse_optimizer(optimizers[0])  # type: ignore[operator]
    groups: Any = parameter_groups(model, rate) if run.rule else [p for p in model.parameters()]
    return [*optimizers, getattr(torch.optim, plain)(groups, lr=rate)]


def precision(run: Run) -> float:
    """P@1 on the rows that it was trained on, after all steps."""
    torch.manual_seed(run.seed)
    x, labels = problem(run)
    model = make_model(run)
    optimizers = make_optimizers(run, model)
    order = torch.Generator().manual_seed(run.seed)
    for step in range(run.steps):
        if step % (run.rows // run.batch) == 0:
            batches = torch.randperm(run.rows, generator=order).view(-1, run.batch)
        rows = batches[step % len(batches)]
        features = model[:2](x[rows])
        if run.fan_in:
            loss = model[2].loss(features, list(labels[rows]))  # type: ignore[operator]
        else:
            dense = torch.zeros(run.batch, run.labels).scatter_(1, labels[rows], 1.0)
            loss = F.binary_cross_entropy_with_logits(model[2](features), dense, reduction="sum") / run.batch
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        return float((model(x).argmax(1)[:, None] == labels).any(1).float().mean())


def train(_: None, run: Run) -> dict[str, Any]:
    return {**asdict(run), "lr": RATES[run.optimizer], "P@1": precision(run)}


def report(rows: list[Row], missing: list[str]) -> None:
    """Prints P@1 by optimizer and what was left out, mean and lowest of the seeds."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["optimizer"], row["prior"], row["rule"], row["fan_in"]].append(row["P@1"])
    lines = ["| optimizer | lr | bias | weights' rate | dense | K=16 | K=32 | K=64 |", "|" + "---|" * 8]
    for optimizer, prior, rule in dict.fromkeys(key[:3] for key in groups):
        cells = []
        for fan_in in (0, 16, 32, 64):
            values = groups.get((optimizer, prior, rule, fan_in))
            cells.append(f"{mean(values):.3f} ({min(values):.3f})" if values else "")
        bias, rate = "log-odds" if prior else "zero", "lr D/K" if rule else "lr"
        lines.append(f"| {optimizer} | {RATES[optimizer]:g} | {bias} | {rate} | {' | '.join(cells)} |")
    print("\n".join(lines))
    if missing:
        print(f"\nnot measured: {len(missing)} runs, the first is {missing[0]}")


if __name__ == "__main__":
    study.main(__doc__, ROWS, runs(), lambda: None, train, report)
