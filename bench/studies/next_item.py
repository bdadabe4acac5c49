"""Next items with an eighth of the output layer: ``examples/next_item.py`` on S3Rec's Beauty, dense and fixed fan-in alike.

    SPARSE_XMC_DATA=... python -m bench.studies.next_item [--match TEXT] [--seconds N]    measure what is missing
    python -m bench.studies.next_item --report                                            the table of the rows

The recipe was chosen on the validation items (``reports/next_item.md`` says how); every run here ranks the test items once.
Rows are appended to ``reports/next_item.jsonl``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Any

from bench import environment
from bench.rows import Row, RowFile
from bench.studies import study, training_data

ROWS = RowFile(environment.REPOSITORY / "reports", "next_item.jsonl")
RECIPE = (
    *("--tied", "--start", "cooccurrence", "--lr", "4e-3", "--schedule", "linear"),
    *("--epochs", "4", "--validate-every", "4"),
)
METRICS = ("HR@5", "HR@10", "NDCG@5", "NDCG@10")


@dataclass(frozen=True)
class Run:
    """``fan_in`` 0 is a dense head."""

    fan_in: int
    features: int
    seed: int

    @property
    def head(self) -> str:
        width = f"{self.features} features"
        return f"fixed fan-in, K={self.fan_in} of {width}" if self.fan_in else f"dense, {width}"

    @property
    def name(self) -> str:
        return f"{self.head},seed={self.seed}"

    def arguments(self) -> list[str]:
        """The example's, without the data."""
        head = ["fixed_fan_in", "--fan-in", str(self.fan_in)] if self.fan_in else ["dense"]
        return ["--head", *head, "--features", str(self.features), *RECIPE, "--seed", str(self.seed)]


def runs() -> Iterator[Run]:
    """The questions, the most important first."""
    for seed in range(3):
        yield Run(31, 256, seed)
    yield Run(0, 256, 0)
    yield Run(0, 31, 0)  # as many parameters as the sparse head


def train(path: str, run: Run) -> dict[str, Any]:
    from examples import next_item

    settings = {"head": run.head, "seed": run.seed, "arguments": " ".join(run.arguments())}
    return {**settings, **next_item.main([path, *run.arguments()])}


def table(rows: list[Row]) -> list[str]:
    """Markdown: means over seeds, the lowest and the highest HR@10 beside its mean."""
    by_head = defaultdict(list)
    for row in rows:
        by_head[row["head"]].append(row)
    lines = [
        f"| head | seeds | {' | '.join(METRICS)} | validation HR@10 | parameters | CPU minutes |",
        "|" + "---|" * (len(METRICS) + 5),
    ]
    for head, found in by_head.items():
        cells = {name: _share(mean(row[name] for row in found)) for name in (*METRICS, "validation HR@10")}
        if len(found) > 1:
            hits = [row["HR@10"] for row in found]
            cells["HR@10"] += f" ({_share(min(hits))} to {_share(max(hits))})"
        minutes = mean(row["CPU seconds"] for row in found) / 60
        size = f"{found[0]['head parameters']:,}"
        lines.append(f"| {head} | {len(found)} | {' | '.join(cells.values())} | {size} | {minutes:.1f} |")
    return lines


def _share(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def print_table(rows: list[Row], missing: list[str]) -> None:
    print("\n".join([*table(rows), f"\nnot run: {', '.join(missing) or 'none'}"]))


def data() -> str:
    return str(training_data.data_folder() / "S3Rec-Beauty" / "Beauty.txt.gz")


if __name__ == "__main__":
    study.main(__doc__, ROWS, runs(), data, train, print_table)
