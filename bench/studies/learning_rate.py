"""Whether a learning rate of the dense model serves the sparse one: rates against fan-in, with and without the scaling rule.

    SPARSE_XMC_DATA=... python -m bench.studies.learning_rate [--match TEXT] [--seconds N]    measure what is missing
    python -m bench.studies.learning_rate --report                                            report and figure of the rows

EURLEX57K: 512 frozen features, a layer of 512, and a head over all labels, one epoch; the last 5,000 training rows are held
out and judged. S3Rec-Beauty: ``examples/next_item.py``'s model over the 1,000 most frequent items, exact softmax; the items
before the test items are judged. Test splits are not touched. Rows are appended to ``reports/learning_rate.jsonl``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench import environment
from bench.learning_rate_report import FIGURE, draw, table
from bench.rows import RowFile
from bench.studies import study, training_data
from bench.studies.topology import load_features
from sparse_xmc import ops
from sparse_xmc.data import to_torch_csr
from sparse_xmc.models import DenseLinear, FixedFanInLinear
from sparse_xmc.optim import parameter_groups

ROWS = RowFile(environment.REPOSITORY / "reports", "learning_rate.jsonl")
HELD_OUT, HIDDEN, BATCH = 5_000, 512, 128
ITEMS, EPOCHS = 1_000, 5
RATES = {
    ("EURLEX57K", "AdamW"): [2.0**k * 1e-3 for k in range(-2, 5)],
    ("EURLEX57K", "SGD"): [2.0**k * 0.1 for k in range(-2, 5)],
    ("S3Rec-Beauty", "AdamW"): [2.0**k * 1e-3 for k in range(-1, 5)],
}


@dataclass(frozen=True)
class Run:
    """``fan_in`` 0 is the dense head; ``rule``: whether the head's weights get ``lr * (D / K) ** power`` or ``lr``."""

    data: str
    optimizer: str
    fan_in: int
    lr: float
    rule: bool = True
    informed: bool = False
    power: float = 1.0

    @property
    def name(self) -> str:
        head = f"K={self.fan_in}" if self.fan_in else "dense"
        rule = "" if self.rule else ",unscaled"
        others = (",informed" if self.informed else "") + ("" if self.power == 1 else f",power={self.power:g}")
        return f"{self.data},{self.optimizer},{head},lr={self.lr:g}{rule}{others}"


def runs() -> Iterator[Run]:
    """The questions, the most important first."""
    for (data, optimizer), rates in RATES.items():
        for fan_in, rule in ((0, True), (32, True), (32, False), (16, True), (64, True), (16, False), (64, False)):
            for lr in rates:
                yield Run(data, optimizer, fan_in, lr, rule)
    for optimizer in ("SGD", "AdamW"):
        for fan_in in (16, 64, 32):
            for lr in RATES["EURLEX57K", optimizer]:
                yield Run("EURLEX57K", optimizer, fan_in, lr, power=0.5)
    for lr in RATES["EURLEX57K", "AdamW"]:
        yield Run("EURLEX57K", "AdamW", 32, lr, informed=True)


def make_optimizer(run: Run, model: nn.Module) -> torch.optim.Optimizer:
    groups: Any = parameter_groups(model, run.lr, weight_decay=0.0, power=run.power) if run.rule else model.parameters()
    if run.optimizer == "SGD":
        return torch.optim.SGD(groups, lr=run.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=run.lr, weight_decay=0.0)


def linear_decay(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


def train_documents(data: training_data.DataSet, run: Run) -> dict[str, Any]:
    torch.manual_seed(0)
    x, y = torch.from_numpy(data.train_x), data.train_y
    labels, kept = y.shape[1], len(x) - HELD_OUT
    prior = torch.from_numpy(y[:kept].sum(0).A1 if hasattr(y.sum(0), "A1") else y[:kept].sum(0)) / kept
    head: Any = (
        FixedFanInLinear(HIDDEN, labels, run.fan_in, seed=0, prior=prior)
        if run.fan_in
        else DenseLinear(HIDDEN, labels, seed=0, prior=prior)
    )
    body = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU())
    if run.informed:
        with torch.no_grad():
            head.indices.copy_(ops.informed_indices(body(x[:kept]), to_torch_csr(y[:kept]), run.fan_in))
    model = nn.Sequential(body, head)
    optimizer = make_optimizer(run, model)
    schedule = linear_decay(optimizer, kept // BATCH)
    for rows in torch.randperm(kept).split(BATCH)[: kept // BATCH]:
        loss = head.loss(body(x[rows]), to_torch_csr(y[rows.numpy()]))
        if not math.isfinite(loss.item()):
            return {"valid P@1": 0.0, "valid loss": None}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge_documents(body, head, x[kept:], y[kept:])


@torch.no_grad()
def judge_documents(body: nn.Module, head: Any, x: Tensor, y: Any) -> dict[str, Any]:
    loss, found = 0.0, 0
    for start in range(0, len(x), 500):
        part, wanted = body(x[start : start + 500]), y[start : start + 500]
        loss += float(head.loss(part, to_torch_csr(wanted), reduction="sum"))
        best = head.topk(part, 1)[1][:, 0].numpy()
        found += int(wanted.toarray()[np.arange(len(best)), best].sum())
    return {"valid P@1": round(100 * found / len(x), 2), "valid loss": loss / len(x)}


def train_recommender(users: list[list[int]], run: Run) -> dict[str, Any]:
    from examples import next_item

    torch.manual_seed(0)
    kind = "fixed_fan_in" if run.fan_in else "dense"
    sizes = {"fan_in": run.fan_in, "width": 64, "features": 256, "length": 20, "dropout": 0.3}
    model = next_item.Recommender(max(map(max, users)), head=kind, **sizes)
    training = [user[:-2] for user in users if len(user) > 3]
    inputs, targets = (next_item.pad([row[cut] for row in training], 20) for cut in (slice(-1), slice(1, None)))
    optimizer = make_optimizer(run, model)
    schedule = linear_decay(optimizer, EPOCHS * math.ceil(len(inputs) / BATCH))
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            known = targets[rows] != next_item.PADDING
            x = model.features(inputs[rows], known)
            loss = model.head.loss(x, targets[rows][known], loss="cross_entropy")
            if not math.isfinite(loss.item()):
                return {"valid HR@10": 0.0, "valid loss": None}
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    histories, answers = [user[:-2] for user in users], [user[-2] for user in users]
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(users), 500):
            rows = histories[start : start + 500]
            last = torch.tensor([min(len(row), 20) - 1 for row in rows])
            x = model.features(next_item.pad(rows, 20), (torch.arange(len(rows)), last))
            wanted = torch.tensor(answers[start : start + 500])
            total += float(model.head.loss(x, wanted, loss="cross_entropy")) * len(rows)
    hits = next_item.ranking(model, histories, answers, 20)["HR@10"]
    return {"valid HR@10": round(100 * hits, 2), "valid loss": total / len(users)}


def with_frequent_items(users: list[list[int]], count: int) -> list[list[int]]:
    """The users' ``count`` most frequent items of those before the last two, numbered from 1; users with four of them."""
    seen = Counter(item for user in users for item in user[:-2])
    number = {item: i + 1 for i, (item, _) in enumerate(seen.most_common(count))}
    kept = [[number[item] for item in user if item in number] for user in users]
    return [user for user in kept if len(user) > 3]


class Data:
    """Both data sets, each read when it is first asked for."""

    documents: training_data.DataSet | None = None
    users: list[list[int]] | None = None


def train(data: Data, run: Run) -> dict[str, Any]:
    if run.data == "EURLEX57K":
        data.documents = data.documents or load_features(512)
        found = train_documents(data.documents, run)
    else:
        from examples import next_item

        path = training_data.data_folder() / "S3Rec-Beauty" / "Beauty.txt.gz"
        data.users = data.users or with_frequent_items(next_item.read_users(str(path)), ITEMS)
        found = train_recommender(data.users, run)
    settings = ("data", "optimizer", "fan_in", "lr", "rule", "informed", "power")
    return {**{name: getattr(run, name) for name in settings}, **found}


if __name__ == "__main__":
    study.main(__doc__, ROWS, runs(), Data, train, study.printed(table, draw, FIGURE))
