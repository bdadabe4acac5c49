"""The accuracy study's table and figures, drawn from its rows; measures nothing."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
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


def short(label: str) -> str:
    """A variant's title as it stands in a figure: what its overrides say in words."""
    name, _, extra = label.rstrip(")").partition(" (")
    name = name.replace("intermediate ", "units: ")
    said = dict(part.split("=") for part in extra.split(", ")) if extra else {}
    words = {
        "fan_in": "K={}",
        "lexical_fan_in": "{} terms",
        "intermediate": "units: {}",
        "head": "{}",
    }
    parts = [words.get(key, key + "={}").format(value) for key, value in said.items()]
    own = [part for part in name.split(", ") if part != "default" or not parts]
    return ", ".join(dict.fromkeys([*parts, *own]))


def unbeaten(point: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """Whether none of ``others`` (memory, precision) beats a point, a tenth more memory counting as equal."""
    x, y = point
    return not any(a <= 1.1 * x and b >= y and (a, b) != point for a, b in others)


def draw(name: str, variants: Variants, target: Sequence[float]) -> str:
    """P@1 against head memory, one point per variant. Named: what nothing (dense heads: no dense head) beats."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    from bench import figure_style as look

    figure, all_axes = look.canvas(4.6)
    figure.subplots_adjust(bottom=0.22)
    axes = all_axes[0, 0]
    labels = [label for label, _ in variants]
    points = [(rows[0]["head_bytes"] / 2**20, mean(row["P@1"] for row in rows)) for rows in variants.values()]
    families = [family(label) for label in labels]
    kinds = dict.fromkeys((*FAMILIES.values(), "fixed fan-in on embeddings"))
    colours = dict(zip(kinds, look.PALETTE, strict=False))
    for kind, marker in zip(kinds, "soD^vP", strict=False):
        chosen = [point for point, own in zip(points, families, strict=True) if own == kind]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), marker, color=colours[kind], label=kind, alpha=0.8, markersize=5.5)
    dense = [point for point, kind in zip(points, families, strict=True) if kind == "dense"]
    axes.axhline(target[0], color="gray", linestyle="--", linewidth=1.2, zorder=1)
    axes.set(xscale="log")
    axes.set_xlabel("head: weights, indices, bias (MiB)", fontsize=look.TEXT)
    axes.set_ylabel("test P@1, %", fontsize=look.TEXT)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.06, y=0.06)
    look.titled(axes, f"{name}: precision against memory of the head")
    named = [
        look.Named(*point, short(label), colours[kind], kind != "dense")
        for label, kind, point in zip(labels, families, points, strict=True)
        if unbeaten(point, dense if kind == "dense" else points)
    ]
    look.near(axes, sorted(named, key=lambda one: -one.y), points, size=look.TEXT - 1)
    axes.annotate(
        "tree ensemble on tf-idf", (axes.get_xlim()[1], target[0]), xytext=(0, 3), textcoords="offset points",
        ha="right", fontsize=look.TEXT - 1, color=look.GREY,
    )  # fmt: skip
    axes.legend(fontsize=look.TEXT - 1, frameon=False, loc="upper left", bbox_to_anchor=(-0.01, -0.12), ncols=3)
    commits = sorted({row["commit"] for row in rows_of(variants)})
    look.caption(figure, f"commits {', '.join(commits)}")
    path = os.path.join(FOLDER, f"{name}.png")
    look.save(figure, Path(path))
    return path


def rows_of(variants: Variants) -> list[dict[str, Any]]:
    return [row for rows in variants.values() for row in rows]


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
