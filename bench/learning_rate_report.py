"""The figure of the learning-rate study: loss of held-out rows against the rate, one curve per fan-in."""

from __future__ import annotations

from collections import defaultdict

from bench import environment
from bench.rows import Row

PANELS = (("EURLEX57K", "AdamW"), ("EURLEX57K", "SGD"), ("S3Rec-Beauty", "AdamW"))
COLOURS = {0: "#000000", 16: "#009e73", 32: "#d55e00", 64: "#0072b2"}
RULES = {0.0: "lr", 0.5: "lr (D/K)^0.5", 1.0: "lr D/K"}  # by the power of D / K
FIGURE = environment.REPOSITORY / "reports" / "learning_rate.png"


def curves(rows: list[Row]) -> dict[tuple[str, str, int, float], list[tuple[float, float | None]]]:
    """Points ``(lr, held-out loss)`` by ascending rate of every (data, optimizer, fan-in, power of D / K)."""
    found = defaultdict(list)
    for row in rows:
        if row["informed"]:
            continue
        key = (row["data"], row["optimizer"], row["fan_in"], row.get("power", 1.0) if row["rule"] else 0.0)
        found[key].append((row["lr"], row["valid loss"]))
    return {key: sorted(points, key=lambda point: point[0]) for key, points in found.items()}


def best_rate(points: list[tuple[float, float | None]]) -> float:
    """The rate with the lowest loss; None is a loss that was not finite."""
    return min((loss, lr) for lr, loss in points if loss is not None)[1]


def table(rows: list[Row]) -> list[str]:
    """Markdown: for each curve the best rate, its loss, and the loss at the dense model's best rate."""
    found = curves(rows)
    lines = [
        "| data | optimizer | head | weights' rate | best lr | loss there | loss at the dense best lr |",
        "|" + "---|" * 7,
    ]
    for (data, optimizer, fan_in, power), points in sorted(found.items()):
        dense = found.get((data, optimizer, 0, 1.0))
        losses = dict(points)
        best = best_rate(points)
        at_dense = losses.get(best_rate(dense)) if dense else None
        rate = RULES[power] if fan_in else "lr"
        shown = "-" if at_dense is None else f"{at_dense:.2f}"
        head = f"K={fan_in}" if fan_in else "dense"
        lines.append(f"| {data} | {optimizer} | {head} | {rate} | {best:g} | {losses[best]:.2f} | {shown} |")
    return lines


def draw(rows: list[Row], path: str) -> None:
    from matplotlib.figure import Figure

    found = curves(rows)
    panels = [panel for panel in PANELS if any(key[:2] == panel for key in found)]
    figure = Figure(figsize=(3.8 * len(panels) + 0.5, 8.5), layout="constrained")
    axes = figure.subplots(len(RULES), len(panels), sharex="col", sharey="col", squeeze=False)
    for column, (data, optimizer) in enumerate(panels):
        losses = [loss for key, points in found.items() if key[:2] == (data, optimizer) for _, loss in points if loss]
        lowest, highest = min(losses), max(losses)
        for line, (power, rule) in enumerate(RULES.items()):
            axis = axes[line, column]
            for fan_in, colour in COLOURS.items():
                points = found.get((data, optimizer, fan_in, power if fan_in else 1.0), [])
                shown = [(lr, loss) for lr, loss in points if loss is not None]
                if not shown:
                    continue
                axis.plot(*zip(*shown, strict=True), ".-", color=colour, label=f"K = {fan_in}" if fan_in else "dense")
                best = best_rate(shown)
                axis.plot([best], [dict(shown)[best]], marker="*", markersize=14, color=colour)
            axis.set(xscale="log", ylim=(lowest * 0.98, min(lowest * 1.45, highest * 1.02)))
            axis.grid(alpha=0.3)
            axis.set_title(f"{data}, {optimizer}\nweights of the head: {rule}", fontsize=9, loc="left")
        axes[-1, column].set_xlabel("lr (stars: best)")
    for axis in axes[:, 0]:
        axis.set_ylabel("loss of held-out rows")
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
