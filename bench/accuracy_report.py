"""The accuracy study's table and figures, drawn from its rows; measures nothing."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

FOLDER = "reports/accuracy"
METRICS = ("P@1", "P@3", "P@5", "PSP@1", "PSP@5")
MARK = "<!-- rows: everything below is written by `python -m bench.studies.accuracy report` -->"
FAMILIES = {  # a word of a variant's name and what it stands for, first match
    "dense": "dense",
    "default": "two heads: embeddings and terms",
    "terms only": "fixed fan-in on terms",
    "G=": "groups",
    "intermediate": "fixed fan-in, intermediate layer",
}

IN_NAME = {  # an override and what a variant's name calls it
    "fan_in": (r"\bK=\d+", "K={}"),
    "intermediate": (r"\bintermediate \d+", "intermediate {}"),
    "lexical_fan_in": (r"\b\d+ terms", "{} terms"),
}

Variants = dict[tuple[str, int], list[dict[str, Any]]]


def title(variant: str, overrides: dict[str, Any]) -> str:
    """A variant's name as its overrides leave it, those that the name has no word for in brackets behind it."""
    extra = []
    for name, value in sorted(overrides.items()):
        pattern, text = IN_NAME.get(name, ("$^", ""))
        if re.search(pattern, variant):
            variant = re.sub(pattern, text.format(value), variant)
        elif name != "epochs":
            extra.append(f"{name}={value}")
    return variant + (f" ({', '.join(extra)})" if extra else "")


def grouped(rows: Sequence[dict[str, Any]]) -> dict[str, Variants]:
    """Rows by data set, then by title and epochs, seeds together."""
    result: dict[str, Variants] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        result[row["dataset"]][title(row["variant"], row["overrides"]), row["epochs"]].append(row)
    return result


def _cell(rows: list[dict[str, Any]], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def table(variants: Variants, target: Sequence[float]) -> list[str]:
    head = ["variant", "seeds", *METRICS, "head", "of dense", "s/epoch", "CPU s/epoch", "epochs"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines.append(f"| tree ensemble on tf-idf (to beat) | | {' | '.join(f'{t:.2f}' for t in target)} |" + " |" * 7)
    for (name, epochs), rows in variants.items():
        first = rows[0]
        cells = [name, str(len(rows)), *(_cell(rows, metric) for metric in METRICS)]
        cells.append(f"{first['head_bytes'] / 2**20:.2f} MiB")
        cells.append(f"1/{first['dense_head_bytes'] / first['head_bytes']:.1f}")
        cells.append(f"{mean(row['seconds_per_epoch'] for row in rows):.1f}")
        cells.append(f"{mean(row['cpu_seconds_per_epoch'] for row in rows):.1f}")
        cells.append(str(epochs))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def family(variant: str) -> str:
    for word, name in FAMILIES.items():
        if word in variant:
            return name
    return "fixed fan-in on embeddings"


def unbeaten(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """Whether none of ``others`` (memory, precision) beats a point, a tenth more memory counting as equal."""
    x, y = point
    return not any(a <= 1.1 * x and b >= y and (a, b) != point for a, b in others)


def draw(name: str, variants: Variants, target: Sequence[float]) -> str:
    """P@1 against head memory, one point per variant. Numbered: what nothing (dense heads: no dense head) beats."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(10.5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels = [label for label, _ in variants]
    points = [(rows[0]["head_bytes"] / 2**20, mean(row["P@1"] for row in rows)) for rows in variants.values()]
    families = [family(label) for label in labels]
    for kind in dict.fromkeys((*FAMILIES.values(), *families)):
        chosen = [point for point, own in zip(points, families, strict=True) if own == kind]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), "s" if kind == "dense" else "o", label=kind, alpha=0.7)
    dense = [point for point, kind in zip(points, families, strict=True) if kind == "dense"]
    axes.axhline(target[0], color="gray", linestyle="--", label="tree ensemble on tf-idf", zorder=1)
    numbered = [
        (point, label)
        for label, kind, point in zip(labels, families, points, strict=True)
        if unbeaten(point, dense if kind == "dense" else points)
    ]
    for number, (point, label) in enumerate(sorted(numbered), start=1):
        axes.annotate(
            str(number), point, fontsize=9, fontweight="bold", xytext=(0, 5), textcoords="offset points", ha="center",
            path_effects=[withStroke(linewidth=3, foreground="white")],
        )  # fmt: skip
        axes.plot(
            [],
            [],
            marker=f"${number}$",
            markeredgewidth=0,
            color="black",
            linestyle="none",
            label=label.replace(" (", "\n("),
        )
    commits = sorted({row["commit"] for rows in variants.values() for row in rows})
    axes.set_title(f"{name}: precision against memory of the head", loc="left", fontweight="bold", pad=20)
    axes.text(0, 1.02, f"commits {', '.join(commits)}", transform=axes.transAxes, fontsize=8, color="#555555")
    axes.set(xscale="log", xlabel="head: weights, indices, bias (MiB)", ylabel="test P@1, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.06, y=0.06)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    path = os.path.join(FOLDER, f"{name}.png")
    figure.savefig(path, dpi=120)
    return path


def write_report(rows: Sequence[dict[str, Any]], targets: dict[str, tuple[float, float, float]]) -> None:
    """Rewrites the part of ``reports/accuracy.md`` below the mark; the text above it is written by hand."""
    path = "reports/accuracy.md"
    above = ""
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            above = file.read().split(MARK)[0]
    lines = [MARK, ""]
    for name, variants in grouped(rows).items():
        image = os.path.basename(draw(name, variants, targets[name]))
        commits = ", ".join(sorted({row["commit"] for row in rows if row["dataset"] == name}))
        lines += [f"## {name}", "", *table(variants, targets[name]), "", f"Commits: {commits}.", ""]
        lines += [f"![{name}](accuracy/{image})", ""]
    with open(path, "w", encoding="utf-8") as file:
        file.write(above + "\n".join(lines))
