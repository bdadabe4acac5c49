"""The roofline: how near each provider comes to the machine's limits, one panel per mode."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench import figure_style as look

_MODES = {"step": "training step", "full": "forward + backward", "forward": "forward", "topk": "top-k"}


def roofline(rows: pd.DataFrame) -> Figure | None:
    """Reached FLOP rate against the arithmetic intensity of the work's floor, under the limits measured in the same run.

    The run is the newest of those with the most providers and modes; of each the largest point is shown.
    """
    roofs = rows[(rows["kind"] == "roof") & (rows["status"] == "ok")]
    timed = rows[(rows["kind"] == "time") & (rows["status"] == "ok")]
    timed = timed[timed["flops"].fillna(0) > 0] if "flops" in timed else timed.iloc[:0]
    timed = timed[timed["mode"].isin(_MODES)]
    if roofs.empty or timed.empty:
        return None
    dtype = timed["dtype"].mode()[0]
    roofs, timed = roofs[roofs["dtype"] == dtype], timed[timed["dtype"] == dtype]
    timed = timed[timed["run"].isin(roofs["run"])]
    if timed.empty:
        return None
    counts = timed.drop_duplicates(["run", "provider", "mode"])["run"].value_counts()
    run = counts[counts == counts.max()].index.max()
    roof = roofs[roofs["run"] == run].iloc[-1]
    largest = timed[timed["run"] == run].sort_values("L").groupby(["provider", "mode"]).tail(1)
    modes = [mode for mode in _MODES if mode in set(largest["mode"])]
    columns = min(2, len(modes))
    height = 0.6 + 2.6 * -(-len(modes) // columns)
    figure, axes = look.canvas(height, columns, -(-len(modes) // columns), sharex=True, sharey=True)
    figure.subplots_adjust(wspace=1.35, hspace=0.35, right=0.8)
    limits = _limits(largest, roof)
    for panel, mode in zip(axes.flat, modes, strict=False):
        _panel(panel, largest[largest["mode"] == mode], mode, roof, limits)
    for panel in list(axes.flat)[len(modes) :]:
        panel.set_visible(False)
    note = (
        f"Percent: share of what copying ({roof['bandwidth'] / 1e9:,.0f} GB/s) and matrix products "
        f"({roof['rate'] / 1e9:,.0f} GFLOP/s) of the same run allow, the black line.\n"
    )
    look.caption(figure, note + look.conditions(largest, "B", "D", "K"))
    return figure


def _limits(largest: pd.DataFrame, roof: pd.Series) -> tuple[float, float]:
    intensity = largest["flops"] / largest["floor_bytes"]
    return float(intensity.min()) / 2, float(max(intensity.max(), roof["rate"] / roof["bandwidth"])) * 2


def _panel(axes: Axes, part: pd.DataFrame, mode: str, roof: pd.Series, limits: tuple[float, float]) -> None:
    lowest, highest = limits
    knee = roof["rate"] / roof["bandwidth"]
    axes.plot(
        [lowest, knee, highest] if lowest < knee else [lowest, highest],
        [lowest * roof["bandwidth"], roof["rate"], roof["rate"]] if lowest < knee else [roof["rate"]] * 2,
        color=look.INK,
        linewidth=1.5,
        zorder=1,
    )
    named = []
    for _, row in part.iterrows():
        style = look.style(row["provider"])
        x, y = row["flops"] / row["floor_bytes"], row["flops"] / (row["p50_ms"] * 1e-3)
        axes.scatter(
            x, y, color=style["color"], marker=style["marker"], s=42, zorder=3, edgecolor="white", linewidth=0.6
        )
        share = y / min(roof["rate"], x * roof["bandwidth"])
        text = f"{style['label']}  {share:.0%}"
        named.append(look.Named(x, y, text, style["color"], row["provider"].startswith("sparse_xmc")))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest, highest)
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if lowest <= tick <= highest]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    look.titled(axes, _MODES[mode].capitalize())
    axes.set_xlabel("FLOP per byte", fontsize=look.TEXT)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1e9:g} GFLOP/s"))
    axes.tick_params(labelbottom=True)
    look.beside(axes, named, size=look.SMALL)
