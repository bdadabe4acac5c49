"""What a stranger asks first, answered from stored rows: what it costs in accuracy, and from how many labels on it pays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from bench.compare_report import newest as newest_of_peers
from bench.environment import REPOSITORY
from bench.rows import Row

REPORTS = REPOSITORY / "reports"
FEATURES = 512  # of the frozen rows of the topology study

# set, what the heads read, the dense head's variant, the sparse heads' variants with what stands in the table
PAIRS: tuple[tuple[str, str, tuple[str, int], tuple[tuple[str, int, str], ...]], ...] = (
    ("EURLEX57K", "an embedding that trains along", ("dense", 4), (("K=64", 4, "K=64"), ("K=128", 4, "K=128"))),
    (
        "EURLEX57K",
        "embedding and terms",
        ("default, 512 terms, bigrams (head=dense)", 8),
        (("default, 96 terms, bigrams (fan_in=32, intermediate=2048)", 8, "K=32, 96 terms"),),
    ),
    (
        "TIBKAT-EN",
        "embedding and terms",
        ("default (head=dense)", 4),
        (("default (fan_in=16, lexical_fan_in=16)", 4, "K=16, 16 terms"),),
    ),
)


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _frozen(rows: Sequence[Row]) -> str:
    """The line of frozen features: dense against informed connections that regrow by gradient."""

    def of(fan_in: int) -> float:
        shown = ("dense", "none") if not fan_in else ("informed", "gradient")
        found = [
            row["P@1"]
            for row in rows
            if (row["hidden"], row["fan_in"], row["start"], row["regrow"], row["epochs"]) == (0, fan_in, *shown, 6)
        ]
        return mean(found)

    sparse = ", ".join(f"{of(k):.1f} with K={k}" for k in (64, 128))
    bytes_of = {k: 6 * k + 4 for k in (64, 128)}  # a float32 weight and a 16-bit index a connection, and the bias
    saved = ", ".join(f"1/{(4 * FEATURES + 4) / size:.1f}" for size in bytes_of.values())
    return f"| EURLEX57K, {FEATURES} frozen features | {of(0):.1f} | {sparse} | {saved} |"


def accuracy(reports: Path = REPORTS) -> list[str]:
    """Markdown: P@1 on the test split with a dense head and with sparse ones of the same model."""
    from bench.accuracy_report import grouped

    variants = grouped(_jsonl(reports / "accuracy" / "rows.jsonl"))
    lines = [
        "| P@1 on the test split, the same model | dense head | fixed fan-in | memory of the heads |",
        "|---|---|---|---|",
    ]
    lines.append(_frozen(_jsonl(reports / "topology.jsonl")))
    for name, what, dense, sparse in PAIRS:
        one = variants[name][dense]
        others = [(variants[name][title, epochs], shown) for title, epochs, shown in sparse]
        values = ", ".join(f"{mean(row['P@1'] for row in rows):.1f} with {shown}" for rows, shown in others)
        saved = ", ".join(f"1/{one[0]['head_bytes'] / rows[0]['head_bytes']:.1f}" for rows, _ in others)
        lines.append(f"| {name}, {what} | {mean(row['P@1'] for row in one):.1f} | {values} | {saved} |")
    return lines


def classifiers(rows: Sequence[Row]) -> list[str]:
    """Markdown: P@1 and CPU seconds of training beside other classifiers, a line per set."""
    found = newest_of_peers(rows)
    systems = list(dict.fromkeys(variant for rows_of in found.values() for variant in rows_of))
    lines = ["| P@1, CPU seconds of training | " + " | ".join(systems) + " |", "|---" * (len(systems) + 1) + "|"]
    for name, of_set in found.items():
        cells = []
        for variant in systems:
            row = of_set.get(variant)
            if row is None or row["status"] != "ok":
                cells.append("-" if row is None else row["status"])
            else:
                cells.append(f"{row['P@1']:.1f}, {row['train_cpu_s']:,.0f} s")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def break_even(rows: Sequence[Row], provider: str) -> tuple[int, bool]:
    """The fewest labels from which on a provider's step was faster than the dense one, at every size measured.

    Returns:
        That number, and whether no fewer labels were tried.

    Raises:
        ValueError: there is no complete run of the suite, or the dense step was faster up to the last size.
    """
    ended = [row["run"] for row in rows if row.get("kind") == "end" and row.get("suite") == "break_even"]
    if not ended:
        raise ValueError("no complete run of the suite: python -m bench run --suite break_even --out reports/cpu")
    times: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.get("run") == ended[-1] and row.get("kind") == "time" and row["status"] == "ok":
            times.setdefault(row["provider"], {})[row["L"]] = row["p50_ms"]
    own, dense = times[provider], times["dense"]
    slower = [size for size in own if own[size] >= dense[size]]
    faster = [size for size in own if size > max(slower, default=0)]
    if not faster:
        raise ValueError(f"{provider} was not faster than the dense layer at {max(own):,} labels")
    return min(faster), not slower
