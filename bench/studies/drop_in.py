"""A sparse layer in the place of a dense one, at the dense one's learning rate: does the model learn as much in as many steps?

    python -m bench.studies.drop_in [--match TEXT] [--seconds N]    measure what is missing
    python -m bench.studies.drop_in --report                        the table and the figure of the rows

A small classifier over many labels, few of which occur: rows near 64 centres, each with two labels of its own. Its output
layer is an ``nn.Linear``, or what ``sparsify_(..., prior=2)`` makes of that with rates of ``parameter_groups``; or with only
one of the two. Rows are appended to ``reports/drop_in.jsonl``; the whole takes 2 CPU minutes.
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
FIGURE = environment.REPOSITORY / "reports" / "drop_in.png"
POSITIVES, CENTRES = 2, 64
FAN_INS = (0, 16, 32, 64)
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
            for fan_in in FAN_INS:
                yield Run(optimizer, fan_in, seed)
        for fan_in in FAN_INS:
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


Case = tuple[str, bool, bool]  # optimizer, whether there is a prior, whether the rule sets the weights' rate


def by_case(rows: list[Row]) -> dict[Case, dict[int, list[float]]]:
    """P@1 of every seed, by fan-in."""
    found: dict[Case, dict[int, list[float]]] = {}
    for row in rows:
        case = (row["optimizer"], row["prior"], row["rule"])
        found.setdefault(case, defaultdict(list))[row["fan_in"]].append(row["P@1"])
    return found


def table(rows: list[Row]) -> list[str]:
    """Markdown: mean and lowest P@1 of the seeds, by optimizer and what was left out."""
    lines = ["| optimizer | lr | bias | weights' rate | dense | K=16 | K=32 | K=64 |", "|" + "---|" * 8]
    for (optimizer, prior, rule), values in by_case(rows).items():
        cells = [f"{mean(values[k]):.3f} ({min(values[k]):.3f})" if k in values else "" for k in FAN_INS]
        bias, rate = "log-odds" if prior else "zero", "lr D/K" if rule else "lr"
        lines.append(f"| {optimizer} | {RATES[optimizer]:g} | {bias} | {rate} | {' | '.join(cells)} |")
    return lines


def draw(rows: list[Row], path: str) -> None:
    """A bar for each fan-in, from the lowest to the highest seed's P@1 a line; one group for each case."""
    from matplotlib.figure import Figure

    cases = by_case(rows)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, (fan_in, colour) in enumerate(zip(FAN_INS, ("black", "#1b9e77", "#d95f02", "#7570b3"), strict=True)):
        shown = [(i, values[fan_in]) for i, values in enumerate(cases.values()) if fan_in in values]
        x = [i + 0.2 * (place - 1.5) for i, _ in shown]
        axis.bar(x, [mean(v) for _, v in shown], 0.18, color=colour, label=f"K = {fan_in}" if fan_in else "dense")
        axis.vlines(x, [min(v) for _, v in shown], [max(v) for _, v in shown], color="grey")
    names = [
        optimizer + ("" if prior else "\nno prior") + ("" if rule else "\nunscaled") for optimizer, prior, rule in cases
    ]
    axis.set_xticks(range(len(cases)), names, fontsize=8)
    axis.set(ylim=(0.6, 1.01), ylabel="P@1")
    axis.legend(fontsize=8, ncols=4, loc="lower left")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    study.main(__doc__, ROWS, runs(), lambda: None, train, study.printed(table, draw, FIGURE))
