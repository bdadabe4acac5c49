"""Tables and figure of the study of losses over a sample of the labels."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean

from bench import environment
from bench.rows import Row

FIGURE = environment.REPOSITORY / "reports" / "hard_negatives.png"
COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
TIMES = {  # what is added up of a row, and how it is drawn
    "exact": (("exact",), "#000000", "o-"),
    "sample, hard labels found every epoch": (("sampled", "mining"), "#d55e00", "o-"),
    "sample, without finding them": (("sampled",), "#d55e00", "o:"),
    "a fused step of as few labels": (("few labels",), "#009e73", "o--"),
}


def trainings(rows: list[Row]) -> dict[tuple[str, float], list[Row]]:
    """Rows of every (method with what it draws, rate), one for each seed."""
    found = defaultdict(list)
    for row in rows:
        if "method" in row:
            method = row["method"].replace("uniform", f"{row['drawn']:,} drawn")
            found[method, row["lr"]].append(row)
    return found


def best_of(rows: list[Row]) -> dict[str, list[Row]]:
    """Of every method the runs at the rate whose first seed has the highest P@1."""
    chosen: dict[str, tuple[float, list[Row]]] = {}
    for (method, _), found in trainings(rows).items():
        first = min(found, key=lambda row: row["seed"])["P@1"]
        if method not in chosen or first > chosen[method][0]:
            chosen[method] = first, found
    return {method: found for method, (_, found) in chosen.items()}


def table(rows: list[Row]) -> list[str]:
    """Markdown: both tables."""
    return [*table_of_times(rows), "", *table_of_accuracy(rows)]


def table_of_times(rows: list[Row]) -> list[str]:
    """Markdown: milliseconds of a step against labels."""
    lines = ["| labels | " + " | ".join(TIMES) + " |", "|" + "---|" * (1 + len(TIMES))]
    for row in sorted((row for row in rows if "labels" in row), key=lambda row: row["labels"]):
        cells = [f"{sum(row[f'{part} ms'] for part in parts):.1f}" for parts, *_ in TIMES.values()]
        lines.append(f"| {row['labels']:,} | {' | '.join(cells)} |")
    return lines


def table_of_accuracy(rows: list[Row]) -> list[str]:
    """Markdown: held-out precision of every method and rate, means over seeds."""
    lines = [
        "| loss over | rate of the head | seeds | P@1 | P@3 | P@5 | CPU s | of which finding hard labels |",
        "|" + "---|" * 8,
    ]
    for (method, lr), found in sorted(trainings(rows).items()):
        cells = [f"{mean(row[name] for row in found):.2f}" for name in ("P@1", "P@3", "P@5")]
        cells += [f"{mean(row[name] for row in found):.1f}" for name in ("seconds", "mining")]
        lines.append(f"| {method} | {lr:g} | {len(found)} | {' | '.join(cells)} |")
    return lines


def draw(rows: list[Row], path: str) -> None:
    """Time per step against labels, and held-out P@1 epoch by epoch at every method's best rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    times, accuracy = figure.subplots(1, 2)
    timed = sorted((row for row in rows if "labels" in row), key=lambda row: row["labels"])
    for name, (parts, colour, style) in TIMES.items():
        took = [sum(row[f"{part} ms"] for part in parts) for row in timed]
        times.plot([row["labels"] for row in timed], took, style, color=colour, markersize=4, label=name)
    times.set(xscale="log", yscale="log", xlabel="labels", ylabel="CPU ms per step of 128 rows")
    for colour, (method, found) in zip(COLOURS, best_of(rows).items(), strict=True):
        curves = [row["P@1 by epoch"] for row in found]
        means = [mean(at) for at in zip(*curves, strict=True)]
        accuracy.plot(range(1, len(means) + 1), means, "o-", color=colour, markersize=4, label=method)
    accuracy.set(xlabel="epoch", ylabel="P@1 of held-out rows")
    accuracy.xaxis.get_major_locator().set_params(integer=True)
    for axis in (times, accuracy):
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
