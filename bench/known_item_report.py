"""Table and figures of ``reports/scale`` from the rows of ``bench.studies.known_item``; measures nothing.

python -m bench.known_item_report reports/scale
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

NAMES = {
    "sparse_xmc": "fixed fan-in, closed form (this library)",
    "nearest": "exact tf-idf nearest neighbour",
    "lowrank": "low-rank head of the same bytes",
    "omikuji": "omikuji, 3 trees",
    "pecos": "PECOS XR-Linear",
}
_MIB = 2**20


def read(folder: Path) -> list[dict[str, Any]]:
    """The last row of each name and number of rows that it was tried on."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    with open(folder / "known_item.jsonl", encoding="utf-8") as file:
        for row in map(json.loads, file):
            rows[row["name"], row.get("rows", 0)] = row
    return sorted(rows.values(), key=lambda row: (list(NAMES).index(row["name"]), -row.get("rows", 0)))


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| | labels | P@1 | R@5 | CPU s | wall s | peak MiB of all processes | model on disk, MB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        done = row["status"] == "ok"
        scores = [f"{row['P@1']:.2f}", f"{row['R@5']:.2f}"] if done else [_failure(row), "-"]
        size = f"{row['disk'] / 1e6:.0f}" if done else "-"
        labels = f"{row['rows']:,}" if row.get("rows") else "670,091"
        took = [f"{row['cpu_seconds']:.0f}", f"{row['seconds']:.0f}", f"{row['peak_mib']:,.0f}"]
        lines.append(f"| {NAMES[row['name']]} | {' | '.join([labels, *scores, *took, size])} |")
    return lines


def _failure(row: dict[str, Any]) -> str:
    text = " ".join(row.get("said", [])).lower()
    return "out of memory" if "memory" in text or "alloc" in text else row["status"]


def draw(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Memory over time with the limit, and accuracy against bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    paths = [folder / "memory_over_time.png", folder / "accuracy_against_bytes.png"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row in rows:
        if row["status"] == "ok" or row["samples"]:
            seconds, held = zip(*row["samples"], strict=True)
            name = NAMES[row["name"]] + ("" if row["status"] == "ok" else f" ({_failure(row)})")
            axes.plot(seconds, held, label=f"{name}, {row.get('rows') or 670_091:,} labels")
    axes.axhline(rows[0]["limit"] / _MIB, color="black", linestyle="--", label="limit: 4 GB")
    axes.set(xlabel="seconds", ylabel="resident memory of all processes, MiB", ylim=(0, None))
    axes.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.93))  # below the limit
    figure.savefig(paths[0], dpi=120)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row in (row for row in rows if row["status"] == "ok"):
        axes.scatter(row["disk"] / 1e6, row["P@1"])
        label = NAMES[row["name"]] + ("" if row.get("rows", 670_091) == 670_091 else f", {row['rows']:,} labels")
        place = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
        axes.annotate(label, (row["disk"] / 1e6, row["P@1"]), fontsize=8, **place)
    axes.set(
        xlabel="bytes of the model, MB",
        ylabel="P@1 of 20,000 partial queries",
        xscale="log",
        xlim=(10, 10_000),
        ylim=(0, 100),
    )
    figure.savefig(paths[1], dpi=120)
    return paths


def main(folder: Path) -> None:
    rows = read(folder)
    where = rows[0]["environment"]
    text = [
        "# 670,091 labels in 4 GB",
        "",
        "Known-item search: each label is a package with one line of text, 20,000 partial queries are to find theirs.",
        f"Every program runs under a hard limit of {rows[0]['limit']:,} bytes of address space (`bench/limited.py`), children",
        f"included, on {where.get('cpu', 'a CPU')}, {where.get('cores', '?')} cores, which other work shared:",
        "CPU seconds compare, wall seconds hardly. Ours reads texts, chooses, solves and evaluates in that time; the others",
        "begin with the finished tf-idf matrix.",
        "",
        "```bash",
        "make scale DATA=../shared/data/PyPI-KnownItem PEERS=/path/to/python",
        "```",
        "",
        "The same command then repeats what is said of several hosts (`tests/distributed/test_hosts.py`): network namespaces",
        "serve as two and three of them.",
        "",
        *table(rows),
        "",
        "![Memory over time](memory_over_time.png)",
        "",
        "![Accuracy against bytes](accuracy_against_bytes.png)",
        "",
        "Rows with fewer labels are what is tried when all of them fail: there are fewer wrong answers to give, so their",
        "accuracy does not compare with that of the others.",
    ]
    (folder / "known_item.md").write_text("\n".join(text) + "\n")
    for path in draw(rows, folder):
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
