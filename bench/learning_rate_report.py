"""The figure of the learning-rate study: loss of held-out rows against the rate, one curve per fan-in."""

from __future__ import annotations

from collections import defaultdict

from bench import environment
from bench.rows import Row

PANELS = (("EURLEX57K", "AdamW"), ("EURLEX57K", "SGD"), ("S3Rec-Beauty", "AdamW"))
COLOURS = {0: "black", 16: "#1b9e77", 32: "#d95f02", 64: "#7570b3"}
FIGURE = environment.REPOSITORY / "reports" / "learning_rate.png"


def curves(rows: list[Row]) -> dict[tuple[str, str, int, bool, bool], list[tuple[float, float | None]]]:
    """Points ``(lr, held-out loss)`` by ascending rate of every (data, optimizer, fan-in, rule, informed)."""
    found = defaultdict(list)
    for row in rows:
        key = (row["data"], row["optimizer"], row["fan_in"], row["rule"], row["informed"])
        found[key].append((row["lr"], row["valid loss"]))
    return {key: sorted(points, key=lambda point: point[0]) for key, points in found.items()}


def best_rate(points: list[tuple[float, float | None]]) -> float:
    """The rate with the lowest loss; None is a loss that was not finite."""
    return min((loss, lr) for lr, loss in points if loss is not None)[1]


def table(rows: list[Row]) -> list[str]:
    """Markdown: for each curve the best rate, its loss, and the loss at the dense model's best rate."""
    found = curves(rows)
    lines = [
        "| data | optimizer | head | weights' rate | best lr | loss there | loss at dense best lr |",
        "|" + "---|" * 7,
    ]
    for (data, optimizer, fan_in, rule, informed), points in sorted(found.items()):
        dense = found.get((data, optimizer, 0, True, False))
        losses = dict(points)
        best = best_rate(points)
        at_dense = losses.get(best_rate(dense)) if dense else None
        head = f"K={fan_in}{', informed' if informed else ''}" if fan_in else "dense"
        rate = ("lr D/K" if rule else "lr") if fan_in else "lr"
        shown = "-" if at_dense is None else f"{at_dense:.3f}"
        lines.append(f"| {data} | {optimizer} | {head} | {rate} | {best:g} | {losses[best]:.3f} | {shown} |")
    return lines


def draw(rows: list[Row], path: str) -> None:
    from matplotlib.figure import Figure

    found = curves(rows)
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(2, len(PANELS), sharex="col", sharey="col")
    for column, (data, optimizer) in enumerate(PANELS):
        for line, rule in enumerate((True, False)):
            axis = axes[line, column]
            lowest = []
            for fan_in, colour in COLOURS.items():
                points = found.get((data, optimizer, fan_in, rule or not fan_in, False))
                shown = [(lr, loss) for lr, loss in points or [] if loss is not None]
                if not shown:
                    continue
                lowest.append(min(loss for _, loss in shown))
                label = f"K = {fan_in}" if fan_in else "dense"
                axis.plot(*zip(*shown, strict=True), marker="o", color=colour, label=label)
                best = best_rate(shown)
                axis.plot([best], [dict(shown)[best]], marker="*", markersize=15, color=colour)
            if lowest and rule:
                axis.set_ylim(min(lowest) * 0.97, min(lowest) * (1.25 if data == "S3Rec-Beauty" else 2.2))
            axis.set(xscale="log")
            axis.grid(alpha=0.3)
            weights = "weights of the head: lr x D / K" if rule else "weights of the head: lr"
            axis.set_title(f"{data}, {optimizer}\n{weights}", fontsize=10, loc="left")
        axes[1, column].set_xlabel("lr (stars: best)")
    axes[0, 0].set_ylabel("loss of held-out rows")
    axes[1, 0].set_ylabel("loss of held-out rows")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def report(rows: list[Row], missing: list[str]) -> None:
    """Prints the table and draws the figure."""
    print("\n".join(table(rows)))
    if missing:
        print(f"\nnot measured: {len(missing)} runs, the first is {missing[0]}")
    draw(rows, str(FIGURE))
