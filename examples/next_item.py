"""Next-item recommendation with a softmax over all items: a fixed fan-in output layer against a dense one.

A causal transformer reads a user's items; the last item of every user is the test, the one before it the validation.
All items are ranked, those the user has had are left out. The data: one user a line, ``user item item ...`` in order of
time, gzip or not (S3Rec's ``Beauty.txt``).

    python examples/next_item.py Beauty.txt.gz --head fixed_fan_in --fan-in 32 --head-lr 1e-2 --dropout 0
    python examples/next_item.py Beauty.txt.gz --head dense
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_xmc.models import FixedFanInLinear

PADDING = 0


def read_users(path: str) -> list[list[int]]:
    """Items of every user in order of time, numbered from 1."""
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [[int(item) for item in line.split()[1:]] for line in file]


def pad(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """The last ``length`` items of every row, ``[N, length]``, padded on the right."""
    out = torch.full((len(rows), length), PADDING)
    for i, row in enumerate(rows):
        recent = list(row)[-length:]
        out[i, : len(recent)] = torch.tensor(recent)
    return out


class DenseSoftmax(nn.Linear):
    """The rival: every item reads every feature."""

    def loss(self, x: Tensor, targets: Tensor, *, loss: str = "cross_entropy") -> Tensor:
        return F.cross_entropy(self(x), targets)


class Recommender(nn.Module):
    """Embedding, causal transformer, a wide layer, and a head over all items."""

    def __init__(
        self, num_items: int, *, head: str, fan_in: int, width: int, features: int, length: int, dropout: float
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(num_items + 1, width, padding_idx=PADDING)
        self.positions = nn.Parameter(torch.zeros(length, width))
        block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.3, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.wide = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features), nn.GELU(), nn.Dropout(dropout))
        nn.init.normal_(self.items.weight, std=width**-0.5)
        sizes = (features, num_items + 1)
        self.head = DenseSoftmax(*sizes) if head == "dense" else FixedFanInLinear(*sizes, fan_in, seed=0)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(length))

    def features(self, sequences: Tensor) -> Tensor:
        """``[N, length]`` items to ``[N, length, features]``."""
        length = sequences.shape[1]
        x = F.dropout(self.items(sequences) + self.positions[:length], 0.3, self.training)
        return self.wide(self.encoder(x, mask=self.causal[:length, :length], is_causal=True))


@torch.no_grad()
def ranking(model: Recommender, histories: list[list[int]], answers: list[int], length: int) -> dict[str, float]:
    """Where the next item stands among all items that a user has not had: HR@k is the share of users for whom it is one
    of the first k, NDCG@k counts those by ``1 / log2(1 + rank)``."""
    model.eval()
    ranks = []
    for start in range(0, len(histories), 256):
        rows = histories[start : start + 256]
        last = torch.tensor([min(len(row), length) - 1 for row in rows])
        x = model.features(pad(rows, length))[torch.arange(len(rows)), last]
        scores = model.head(x)
        scores[:, PADDING] = -float("inf")
        answer = torch.tensor(answers[start : start + 256])[:, None]
        own = scores.gather(1, answer)
        had = pad(rows, max(len(row) for row in rows))
        scores.scatter_(1, had, -float("inf"))
        ranks.append((scores > own).sum(1))
    rank = torch.cat(ranks)
    model.train()
    gain = 1 / torch.log2(rank + 2.0)
    metrics = {}
    for k in (5, 10):
        metrics[f"HR@{k}"] = float((rank < k).float().mean())
        metrics[f"NDCG@{k}"] = float(torch.where(rank < k, gain, 0).mean())
    return metrics


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--head", choices=("fixed_fan_in", "dense"), default="fixed_fan_in")
    parser.add_argument("--fan-in", type=int, default=32)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--head-lr", type=float, help="learning rate of the head (default: --lr)")
    parser.add_argument("--dropout", type=float, default=0.3, help="in front of the head (default: 0.3)")
    parser.add_argument("--users", type=int, help="only the first so many users")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    users = read_users(options.data)[: options.users]
    num_items = max(map(max, users))
    training = [user[:-2] for user in users if len(user) > 3]
    inputs = pad([row[:-1] for row in training], options.length)
    targets = pad([row[1:] for row in training], options.length)
    model = Recommender(
        num_items,
        head=options.head,
        fan_in=options.fan_in,
        width=options.width,
        features=options.features,
        length=options.length,
        dropout=options.dropout,
    )
    body = [p for name, p in model.named_parameters() if not name.startswith("head.")]
    groups = [{"params": body}, {"params": model.head.parameters(), "lr": options.head_lr or options.lr}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, weight_decay=0.01)
    began, result = time.monotonic(), {}
    for epoch in range(options.epochs):
        total = 0.0
        for rows in torch.randperm(len(inputs)).split(options.batch_size):
            known = targets[rows] != PADDING
            x = model.features(inputs[rows])[known]
            loss = model.head.loss(x, targets[rows][known], loss="cross_entropy")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        valid = ranking(model, [user[:-2] for user in users], [user[-2] for user in users], options.length)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in valid.items())
        print(f"epoch {epoch + 1}: loss {total / len(inputs):.3f}, validation {shown}", flush=True)
        if not result or valid["HR@10"] > result["validation HR@10"]:
            test = ranking(model, [user[:-1] for user in users], [user[-1] for user in users], options.length)
            result = {**test, "validation HR@10": valid["HR@10"], "epoch": epoch + 1}
    result["seconds"] = time.monotonic() - began
    result["head parameters"] = sum(p.numel() for p in model.head.parameters())
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
