"""The report of ``bench.studies.topology``: reads rows, measures nothing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRICS = ("P@1", "P@3", "P@5")
LABELS = {"none": "kept", "random": "random regrowth", "gradient": "gradient regrowth", "informed": "informed regrowth"}


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[int, int, str, str, int], list[dict[str, Any]]]:
    """Runs that differ in the seed only, ordered by intermediate layer, fan-in, start, regrowth and epochs."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["hidden"], row["fan_in"], row["start"], row["regrow"], row["epochs"]].append(row)
    return dict(sorted(groups.items()))


def _cell(group: list[dict[str, Any]], metric: str) -> str:
    values = [row[metric] for row in group]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def write_report(rows: list[dict[str, Any]], folder: Path, missing: Sequence[str] = ()) -> None:
    """Writes ``topology.md`` and ``topology.png``; ``missing`` names the planned runs that have no row."""
    if not rows:
        raise ValueError("there are no rows to report: run python -m bench.studies.topology first")
    lines = [
        "# Topology: where connections start and where they regrow",
        "",
        "EURLEX57K (45,000 / 6,000 rows, labels of the training split), tf-idf projected to 512 dimensions by SVD and frozen.",
        "Adam with a cosine learning rate, batch 128, binary cross-entropy, head initialised to zero. Rewiring every 100",
        "steps until 66 % of the training, fraction 0.2 decaying to 0 on a cosine; gradients for regrowth from 2,048 random",
        "training rows and 4 K sampled candidates, centroids from all rows. ± is the standard deviation over seeds; a line",
        "with 1 seed has no estimate of it. Precision is measured once, on the test split, after the last step.",
        "",
        "Command: `python -m bench.studies.topology`, then `--report`. Raw rows: `topology.jsonl`. Wall times in the rows were",
        "taken on a shared machine and are not measurements.",
        "",
        "| intermediate | K | start | rewiring | epochs | seeds | P@1 | P@3 | P@5 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (hidden, fan_in, start, regrow, epochs), group in _grouped(rows).items():
        kind = ("dense", "", "") if fan_in == 0 else (str(fan_in), start, LABELS[regrow])
        cells = (str(hidden or "none"), *kind, str(epochs), str(len(group)))
        lines.append("| " + " | ".join((*cells, *(_cell(group, metric) for metric in METRICS))) + " |")
    if missing:
        lines += ["", "Planned and not run yet:", "", *(f"- `{name}`" for name in missing)]
    (folder / "topology.md").write_text("\n".join(lines) + "\n\n![P@1 over fan-in](topology.png)\n")
    _plot(rows, folder / "topology.png")


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    from bench import figure_style as look

    figure, all_axes = look.canvas(4.2)
    axes = all_axes[0, 0]
    curves, named = defaultdict(list), []
    shortest = min(row["epochs"] for row in rows if not row["hidden"])
    for (hidden, fan_in, start, regrow, epochs), group in _grouped(rows).items():
        if epochs != shortest:
            continue
        mean = statistics.mean(row["P@1"] for row in group)
        if hidden == 0 and fan_in == 0:
            axes.axhline(mean, color="black", linestyle=":")
            named.append(look.Named(128, mean, "dense head", "black"))
        elif hidden == 0:
            curves[start, regrow].append((fan_in, mean))
    colours = dict(zip(LABELS, look.PALETTE[1:], strict=False))
    for (start, regrow), points in sorted(curves.items()):
        line = "-" if start == "informed" else "--"
        axes.plot(*zip(*points, strict=True), line, marker="o", color=colours[regrow])
        text = f"{start} start, {LABELS[regrow]}"
        named.append(look.Named(*points[-1], text, colours[regrow], start == "informed"))
    look.titled(axes, f"EURLEX57K, 512 frozen features, {shortest} epochs")
    axes.set(xscale="log")
    axes.set_xlabel("connections per label K", fontsize=look.TEXT)
    axes.set_ylabel("test P@1, %", fontsize=look.TEXT)
    axes.set_xticks([16, 32, 64, 128], ["16", "32", "64", "128"])
    axes.minorticks_off()
    look.beside(axes, named)
    look.save(figure, path)
