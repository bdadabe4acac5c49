"""Next-item recommendation with a softmax over all items: a fixed fan-in output layer against a dense one.

A causal transformer reads a user's items; the last item of every user is the test, the one before it the validation, which
chooses the epoch whose model is tested, once. All items are ranked, those the user has had are left out; ties and scores
that are not numbers count against the model. The data: one user a line, ``user item item ...`` in order of time, at least
three items each, gzip or not (S3Rec's ``Beauty.txt``).

    python examples/next_item.py Beauty.txt.gz --head fixed_fan_in --fan-in 32
    python examples/next_item.py Beauty.txt.gz --head fixed_fan_in --fan-in 32 --negatives 1024 --sampling popularity
    python examples/next_item.py Beauty.txt.gz --head dense
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim import parameter_groups

PADDING = 0


def read_users(path: str) -> list[list[int]]:
    """Items of every user in order of time, numbered from 1.

    Raises:
        ValueError: a line without a user and three items, or with an item that is no number from 1; names the line.
    """
    opener = gzip.open if path.endswith(".gz") else open
    users = []
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if not fields:
                continue
            items = fields[1:]
            wrong = [item for item in items if not (item.isascii() and item.isdigit() and int(item) > 0)]
            if wrong:
                raise ValueError(f"{path}, line {number}: items must be numbers from 1, got {wrong[0]!r}")
            if len(items) < 3:
                raise ValueError(
                    f"{path}, line {number}: a user needs three items (training, validation, test), got {len(items)}"
                )
            users.append([int(item) for item in items])
    if not users:
        raise ValueError(f"{path} holds no users")
    return users


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


def combined(vectors: Tensor, wanted: Tensor) -> Tensor:
    """Weights ``[..., n, m]`` by which ``vectors [..., n, width]`` add up to ``wanted [..., width, m]``, by least squares."""
    products = vectors @ vectors.mT
    ridge = 0.01 * products.diagonal(dim1=-2, dim2=-1).mean()
    return torch.linalg.solve(products + ridge * torch.eye(products.shape[-1]), vectors @ wanted)


class Recommender(nn.Module):
    """Embedding, causal transformer, a wide layer, and a head over all items."""

    def __init__(
        self,
        num_items: int,
        *,
        head: str,
        fan_in: int,
        width: int,
        features: int,
        length: int,
        dropout: float,
        prior: Tensor | None = None,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(length, width))
        block = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.3, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.wide = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, features), nn.GELU(), nn.Dropout(dropout))
        sizes = (features, num_items + 1)
        self.head = DenseSoftmax(*sizes) if head == "dense" else FixedFanInLinear(*sizes, fan_in, seed=0, prior=prior)
        self.tied = tied
        # an embedding of the items, or of the head's features
        self.items = nn.Embedding(features if tied else num_items + 1, width)
        nn.init.normal_(self.items.weight, std=width**-0.5)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(length))

    def embedding(self) -> Tensor:
        """What the encoder reads for each item ``[items + 1, width]``: a vector of its own or, tied, the sum of its features'
        vectors, weighted as the head weighs the features."""
        vectors = self.items.weight
        if not self.tied:
            return vectors
        return (self.head(vectors.T) - self.head.bias).T

    @torch.no_grad()
    def start_at_(self, vectors: Tensor) -> None:
        """Makes ``embedding()`` equal to ``vectors [items + 1, width]``, or come as near as the head's connections allow: each
        item reads the features whose vectors are most along its own, with weights by least squares."""
        if not self.tied:
            self.items.weight.copy_(vectors)
            return
        features, head = self.items.weight, self.head
        if not isinstance(head, FixedFanInLinear):
            head.weight.copy_(combined(features, vectors.T).T)
            return
        for start in range(0, len(vectors), 2048):
            part = vectors[start : start + 2048]
            chosen = (part @ F.normalize(features).T).abs().topk(head.fan_in).indices
            head.indices[start : start + 2048].copy_(chosen)
            head.weight[start : start + 2048].copy_(combined(features[chosen], part[:, :, None])[..., 0])

    def states(self, sequences: Tensor) -> Tensor:
        """``[N, length]`` items to what the encoder makes of them ``[N, length, width]``; where there is none it means nothing.

        Rows of like length go through it together, without the padding that all of them have.
        """
        x = F.embedding(sequences, self.embedding()) + self.positions[: sequences.shape[1]]
        x = F.dropout(x, 0.3, self.training)
        lengths, states = (sequences != PADDING).sum(1), torch.zeros_like(x)
        for rows in lengths.argsort().chunk(4):
            n = int(lengths[rows].max())
            states[rows, :n] = self.encoder(x[rows, :n], mask=self.causal[:n, :n], is_causal=True)
        return states

    def features(self, sequences: Tensor, at: Any) -> Tensor:
        """What the head reads at some places of ``sequences [N, length]``: ``[n, features]``; ``at`` is an index of them."""
        return self.wide(self.states(sequences)[at])


def cooccurrence_vectors(training: Sequence[Sequence[int]], num_items: int, width: int, *, window: int = 5) -> Tensor:
    """Vectors ``[items + 1, width]`` of mean square 1 that are alike for items that stand near each other in ``training``.

    A truncated SVD of the positive pointwise mutual information; neighbours count by ``1 / distance``, up to ``window``.
    Source: Levy and Goldberg, "Neural word embedding as implicit matrix factorization", NIPS 2014.
    """
    pairs = [
        (row[i], row[i - distance], 1 / distance)
        for row in training
        for i in range(len(row))
        for distance in range(1, min(window, i) + 1)
    ]
    if not pairs:
        return torch.zeros(num_items + 1, width)
    left, right, weight = (torch.tensor(column) for column in zip(*pairs, strict=True))
    size = (num_items + 1, num_items + 1)
    together = torch.sparse_coo_tensor(
        torch.stack([torch.cat([left, right]), torch.cat([right, left])]), weight.repeat(2), size, check_invariants=True
    )
    together = together.coalesce()
    (left, right), weight = together.indices(), together.values()
    often = torch.zeros(num_items + 1).index_add_(0, left, weight)
    context = often**0.75 / (often**0.75).sum()
    information = (weight / (often[left] * context[right])).log().clamp(min=0)
    half = torch.sparse_coo_tensor(together.indices(), information / 2, size, check_invariants=True)
    u, s, _ = torch.svd_lowrank((half + half.T).coalesce(), width, niter=4)
    vectors = u * s.sqrt()
    return vectors / vectors.square().mean().sqrt()


def ranks_of(scores: Tensor, answers: Tensor, had: Tensor) -> Tensor:
    """How many items ``[N]`` stand before each row's answer, of those that the row has not had.

    An item stands behind the answer only if its score is lower: ties and NaN count against the model.

    Args:
        scores: ``[N, items]``, of which item ``PADDING`` is none.
        answers: ``[N]``. had: ``[N, n]``, padded.
    """
    behind = scores < scores.gather(1, answers[:, None])
    behind[:, PADDING] = True
    behind.scatter_(1, had, True)
    behind.scatter_(1, answers[:, None], True)  # the answer does not stand before itself
    return (~behind).sum(1)


@torch.no_grad()
def ranking(model: Recommender, histories: list[list[int]], answers: list[int], length: int) -> dict[str, float]:
    """Where the next item stands among all items that a user has not had: HR@k is the share of users for whom it is one
    of the first k, NDCG@k counts those by ``1 / log2(1 + rank)``."""
    model.eval()
    ranks = []
    for start in range(0, len(histories), 256):
        rows = histories[start : start + 256]
        last = torch.tensor([min(len(row), length) - 1 for row in rows])
        x = model.features(pad(rows, length), (torch.arange(len(rows)), last))
        had = pad(rows, max(len(row) for row in rows))
        ranks.append(ranks_of(model.head(x), torch.tensor(answers[start : start + 256]), had))
    rank = torch.cat(ranks)
    model.train()
    gain = 1 / torch.log2(rank + 2.0)
    metrics = {}
    for k in (5, 10):
        metrics[f"HR@{k}"] = float((rank < k).float().mean())
        metrics[f"NDCG@{k}"] = float(torch.where(rank < k, gain, 0).mean())
    return metrics


def groups_of(model: Recommender, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rates by fan-in, or the head's own."""
    if options.head_lr is None:
        return parameter_groups(model, options.lr, weight_decay=options.weight_decay)
    body = [p for name, p in model.named_parameters() if not name.startswith("head.")]
    return [{"params": body}, {"params": model.head.parameters(), "lr": options.head_lr}]


def item_counts(training: list[list[int]], num_items: int) -> Tensor:
    """How often each item is to be predicted, plus one: unseen items are drawn too."""
    items = torch.tensor([item for row in training for item in row[1:]])
    counts = torch.bincount(items, minlength=num_items + 1).float() + 1.0
    counts[PADDING] = 0
    return counts


def loss_options(options: argparse.Namespace, counts: Tensor) -> dict[str, Any]:
    """Keywords of ``head.loss``: the exact softmax, or one over a sample of items."""
    if options.sampling is None:
        return {"loss": "cross_entropy"}
    sampled: dict[str, Any] = {"loss": "sampled_softmax", "sampling": options.sampling}
    if options.sampling != "in_batch":
        sampled["num_negatives"] = options.negatives
    if options.sampling != "uniform":
        sampled["frequencies"] = counts
    return sampled


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[list[int]]]:
    """Options and users; bad ones end the program with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--head", choices=("fixed_fan_in", "dense"), default="fixed_fan_in")
    parser.add_argument("--fan-in", type=int, default=32)
    parser.add_argument(
        "--tied", action="store_true", help="the encoder reads items by the head's weights, not by vectors of their own"
    )
    parser.add_argument(
        "--start",
        choices=("random", "cooccurrence"),
        default="random",
        help="what the encoder reads for the items at first",
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--length", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--head-lr", type=float, help="learning rate of the head (default: --lr, scaled by fan-in)")
    parser.add_argument(
        "--schedule", choices=("constant", "linear"), default="constant", help="of the rates, to 0 at the end"
    )
    parser.add_argument("--validate-every", type=int, default=1, metavar="EPOCHS")
    parser.add_argument(
        "--prior", action="store_true", help="start the sparse head's bias at the items' log frequencies"
    )
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--dropout", type=float, default=0.3, help="in front of the head (default: 0.3)")
    parser.add_argument(
        "--sampling", choices=("uniform", "popularity", "in_batch"), help="sampled softmax (default: exact)"
    )
    parser.add_argument("--negatives", type=int, help="items drawn for a batch (uniform, popularity)")
    parser.add_argument("--users", type=int, help="only the first so many users")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.sampling is not None and options.head == "dense":
        parser.error("--sampling is for --head fixed_fan_in")
    if (options.negatives is not None) != (options.sampling in ("uniform", "popularity")):
        parser.error("--negatives goes with --sampling uniform or popularity, which need it")
    if options.epochs < 1 or options.validate_every < 1:
        parser.error(
            f"--epochs and --validate-every must be at least 1, got {options.epochs}, {options.validate_every}"
        )
    if options.users is not None and options.users < 1:
        parser.error(f"--users must be at least 1, got {options.users}")
    try:
        users = read_users(options.data)[: options.users]
    except (OSError, EOFError, ValueError) as error:
        parser.error(str(error))
    if not any(len(user) > 3 for user in users):
        parser.error(f"{options.data} holds no user with four items or more, which training needs")
    num_items = max(map(max, users))
    if options.start == "cooccurrence" and options.width > num_items:
        parser.error(f"--start cooccurrence needs as many items as --width {options.width}, got {num_items}")
    return options, users


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    options, users = parse(arguments)
    torch.manual_seed(options.seed)
    num_items = max(map(max, users))
    training = [user[:-2] for user in users if len(user) > 3]
    inputs = pad([row[:-1] for row in training], options.length)
    targets = pad([row[1:] for row in training], options.length)
    counts = item_counts(training, num_items)
    model = Recommender(
        num_items,
        head=options.head,
        fan_in=options.fan_in,
        width=options.width,
        features=options.features,
        length=options.length,
        dropout=options.dropout,
        prior=counts / counts.sum() if options.prior else None,
        tied=options.tied,
    )
    if options.start == "cooccurrence":
        vectors = cooccurrence_vectors(training, num_items, options.width)
        model.start_at_(vectors * options.width**-0.5)
    optimizer = torch.optim.AdamW(groups_of(model, options), lr=options.lr, weight_decay=options.weight_decay)
    steps = options.epochs * math.ceil(len(inputs) / options.batch_size)
    decays = options.schedule == "linear"
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps if decays else 1.0)
    keywords = loss_options(options, counts)
    began, result, best = time.process_time(), {}, {}
    for epoch in range(options.epochs):
        total = 0.0
        for rows in torch.randperm(len(inputs)).split(options.batch_size):
            known = targets[rows] != PADDING
            x = model.features(inputs[rows], known)
            loss = model.head.loss(x, targets[rows][known], **keywords)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
            if not math.isfinite(total):
                raise SystemExit(f"the loss became {loss.item()} in epoch {epoch + 1}: choose a smaller --lr")
        if (epoch + 1) % options.validate_every and epoch + 1 < options.epochs:
            continue
        valid = ranking(model, [user[:-2] for user in users], [user[-2] for user in users], options.length)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in valid.items())
        print(f"epoch {epoch + 1}: loss {total / len(inputs):.3f}, validation {shown}", flush=True)
        if not result or valid["HR@10"] > result["validation HR@10"]:
            result = {"validation HR@10": valid["HR@10"], "epoch": epoch + 1}
            best = copy.deepcopy(model.state_dict())
    result["CPU seconds"] = time.process_time() - began
    model.load_state_dict(best)
    test = ranking(model, [user[:-1] for user in users], [user[-1] for user in users], options.length)
    result = {**test, **result, "head parameters": sum(p.numel() for p in model.head.parameters())}
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
