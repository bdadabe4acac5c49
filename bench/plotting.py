"""Figures from stored rows. Measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from bench.providers import providers
from bench.rows import Row, RowFile, newest

_MARKERS = "osD^vP*Xh<>p"
_POINT = ["L", "D", "K", "G", "B", "dtype", "device"]


def _frame(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame([row for row in rows if "status" in row and row["kind"] in ("time", "memory", "roof")])


def plot_folder(folder: Path) -> list[Path]:
    """Draws every figure that the rows allow; returns the files written.

    The roofline shows one run; the others show the newest measurement of every job.
    """
    every = RowFile(folder).read()
    rows = _frame(newest(every))
    if rows.empty:
        raise ValueError(f"no rows in {folder}: run `python -m bench run --out {folder}` first")
    figures = {
        "headline": headline,
        "step_time_vs_labels": step_time,
        "peak_memory_vs_labels": peak_memory,
        "throughput_vs_labels": throughput,
        "time_vs_fan_in": time_vs_fan_in,
        "roofline": roofline,
    }
    written = []
    for name, draw in figures.items():
        figure = draw(_frame(every) if draw is roofline else rows)
        if figure is None:
            continue
        path = Path(folder) / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
        written.append(path)
    return written


def _style(name: str) -> dict[str, Any]:
    known = providers()
    place = list(known).index(name) if name in known else len(known)
    ours = name.startswith("sparse_xmc")
    return {
        "label": known[name].label if name in known else name,
        "color": known[name].colour if name in known else "#dbdb8d",
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": "-" if ours else "--",
        "linewidth": 2.4 if ours else 1.4,
        "markersize": 6 if ours else 5,
        "zorder": 3 if ours else 2,
    }


def _slice(rows: pd.DataFrame, kind: str, mode: str, along: str) -> pd.DataFrame:
    """Rows of the best covered sweep along one axis: everything else of the point is constant."""
    part = rows[(rows["kind"] == kind) & (rows["mode"] == mode)]
    if part.empty:
        return part
    fixed = [c for c in _POINT if c != along]
    spread = part.groupby(fixed)[along].nunique()
    if spread.max() < 2:
        return part.iloc[:0]
    chosen = dict(zip(fixed, spread.idxmax(), strict=True))
    for column, value in chosen.items():
        part = part[part[column] == value]
    return part


def _conditions(part: pd.DataFrame, *names: str) -> str:
    first = part.iloc[0]
    values = ", ".join([*(f"{name}={first[name]}" for name in names), str(first["dtype"])])
    gpu = first.get("gpu")
    where = gpu if isinstance(gpu, str) else f"{first['cpu']}, {first['cores']} cores"
    commits = "/".join(sorted({str(c)[:8] for c in part["commit"]}))
    return f"{values}\n{where}, torch {first['torch']}, commit {commits}"


def _axes(title: str, part: pd.DataFrame, conditions: tuple[str, ...]) -> tuple[plt.Figure, Axes]:
    figure, axes = plt.subplots(figsize=(7.2, 4.6))
    axes.set_title(f"{title}\n", pad=9, fontsize=11.5, loc="left", fontweight="bold")
    axes.text(0, 1.015, _conditions(part, *conditions), transform=axes.transAxes, fontsize=7.5, color="#555555")
    _plain(axes)
    return figure, axes


def _caption(figure: plt.Figure, text: str) -> None:
    """Small print above figures of several panels."""
    figure.suptitle(text, fontsize=7.5, color="#555555", x=0.12, ha="left", y=1.02)


def _plain(axes: Axes) -> None:
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _labels_axis(axes: Axes, labels: pd.Series) -> None:
    axes.set_xscale("log")
    ticks = _apart(sorted(labels.unique()))
    axes.set_xticks(ticks, [_count(t) for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labels L")


def _apart(values: list[float]) -> list[float]:
    """Of the values on a logarithmic axis those that have room for their numbers."""
    gap = (values[-1] / values[0]) ** 0.09
    kept = values[:1]
    for value in values[1:]:
        if value >= gap * kept[-1]:
            kept.append(value)
    return kept


def _count(value: float) -> str:
    return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value / 1e3:.0f}k" if value >= 1e3 else f"{value:g}"


def _bytes(value: float, _: int = 0) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _milliseconds(value: float, _: int = 0) -> str:
    return f"{value / 1e3:g} s" if value >= 1e3 else f"{value:g} ms" if value >= 0.1 else f"{value * 1e3:g} us"


def _lines(axes: Axes, part: pd.DataFrame, along: str, value: Callable[[pd.DataFrame], pd.Series]) -> None:
    """A line per provider, with a cross behind the last point if the next one takes more memory than there is.

    A line joins points of one run, the one with the most of them; the others stand alone and hollow.
    """
    too_large = apart = False
    order = list(providers())
    for name in sorted(part["provider"].unique(), key=lambda n: order.index(n) if n in order else len(order)):
        own = part[part["provider"] == name].sort_values(along)
        good = own[own["status"] == "ok"]
        if good.empty:
            continue
        style = _style(name)
        joined = good["run"] == _main_run(good)
        line, alone = good[joined], good[~joined]
        axes.plot(line[along], value(line), **style)
        if not alone.empty:
            hollow = {"linestyle": "none", "markerfacecolor": "white", "label": None}
            axes.plot(alone[along], value(alone), **(style | hollow))
            apart = True
        if {"p20_ms", "p80_ms"} <= set(line) and line["p20_ms"].notna().all() and value is _median:
            axes.fill_between(
                line[along], line["p20_ms"], line["p80_ms"], color=style["color"], alpha=0.15, linewidth=0
            )
        lost = own[(own["status"] == "oom") & (own[along] > good[along].max())]
        if not lost.empty:
            last = good.iloc[-1:]
            axes.annotate(
                "×",
                (last[along].iloc[0], value(last).iloc[0]),
                xytext=(6, -3),
                textcoords="offset points",
                color=style["color"],
            )
            too_large = True
    if too_large:
        axes.plot([], [], "x", color="gray", label="next size: too much memory")
    if apart:
        axes.plot([], [], "o", color="gray", markerfacecolor="white", label="hollow: another run than the line's")


def _main_run(rows: pd.DataFrame) -> str:
    """The run with the most rows, the newest of several."""
    counts = rows["run"].value_counts()
    return str(counts[counts == counts.max()].index.max())


def _held(part: pd.DataFrame) -> pd.Series:
    return part["peak_bytes"] + part["persistent_bytes"]


def _median(part: pd.DataFrame) -> pd.Series:
    return part["p50_ms"]


def _legend(figure: plt.Figure) -> plt.Figure:
    """One legend of all axes, right of the last one."""
    pairs = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes]
    shown = {label: handle for part in pairs for handle, label in part}
    figure.axes[-1].legend(
        shown.values(), shown.keys(), fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5)
    )
    return figure


def _draw_step_time(axes: Axes, part: pd.DataFrame) -> None:
    _lines(axes, part, "L", _median)
    _labels_axis(axes, part["L"])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_milliseconds))
    axes.set_ylabel("time per step (median, 20-80 % band)")


def _draw_peak_memory(axes: Axes, part: pd.DataFrame) -> None:
    _lines(axes, part, "L", _held)
    _labels_axis(axes, part["L"])
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(_bytes))
    axes.set_ylabel("weights + indices + peak of the step")


def _write_gain(axes: Axes, part: pd.DataFrame, value: Callable[[pd.DataFrame], pd.Series], word: str) -> None:
    """The ratio of the dense layer to the fused head where both were measured in one run, at the most labels."""
    good = part[(part["status"] == "ok") & part["provider"].isin(("dense", "sparse_xmc_fused"))]
    pairs = [pair for _, pair in good.groupby(["run", "L"]) if set(pair["provider"]) == {"dense", "sparse_xmc_fused"}]
    if not pairs:
        return
    most = max(pairs, key=lambda pair: (pair["L"].iloc[0], pair["run"].iloc[0])).set_index("provider")
    dense, own = (float(value(most.loc[[name]]).iloc[0]) for name in ("dense", "sparse_xmc_fused"))
    place = float(most["L"].iloc[0])
    axes.annotate("", (place, own), (place, dense), arrowprops={"arrowstyle": "->", "color": "black", "linewidth": 1.4})
    text = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "black", "linewidth": 0.8}
    middle = (dense * own) ** 0.5
    axes.text(
        place, middle, f"{dense / own:.0f}x {word}", ha="center", va="center", fontsize=9.5, weight="bold", bbox=text
    )


def headline(rows: pd.DataFrame) -> plt.Figure | None:
    """Peak memory and time of a training step against the number of labels, side by side."""
    parts = [
        ("Peak memory of a training step", _slice(rows, "memory", "step", "L"), _draw_peak_memory, _held, "smaller"),
        ("Time of a training step", _slice(rows, "time", "step", "L"), _draw_step_time, _median, "faster"),
    ]
    if any(part.empty for _, part, *_ in parts):
        return None
    figure, all_axes = plt.subplots(1, 2, figsize=(11.5, 4.3))
    for axes, (title, part, draw, value, word) in zip(all_axes, parts, strict=True):
        axes.set_title(title, fontsize=11.5, loc="left", fontweight="bold")
        _plain(axes)
        draw(axes, part)
        _write_gain(axes, part, value, word)
        axes.tick_params(axis="x", labelsize=8)
    _caption(figure, _conditions(pd.concat([part for _, part, *_ in parts]), "B", "D", "K"))
    figure.subplots_adjust(wspace=0.24)
    return _legend(figure)


def step_time(rows: pd.DataFrame) -> plt.Figure | None:
    """Time of one training step of the head (loss, gradients, SGD update) against the number of labels."""
    part = _slice(rows, "time", "step", "L")
    if part.empty:
        return None
    figure, axes = _axes("Training step of the output layer", part, ("B", "D", "K", "G"))
    _draw_step_time(axes, part)
    return _legend(figure)


def peak_memory(rows: pd.DataFrame) -> plt.Figure | None:
    """Parameters and indices, plus what a training step needs on top of them, against the number of labels."""
    part = _slice(rows, "memory", "step", "L")
    if part.empty:
        return None
    figure, axes = _axes("Peak memory of a training step", part, ("B", "D", "K", "G"))
    _draw_peak_memory(axes, part)
    return _legend(figure)


def throughput(rows: pd.DataFrame) -> plt.Figure | None:
    """Labels scored and differentiated per second, forward and forward + backward."""
    parts = {
        title: _slice(rows, "time", mode, "L")
        for mode, title in (("forward", "Forward"), ("full", "Forward + backward"))
    }
    parts = {title: part for title, part in parts.items() if not part.empty}
    if not parts:
        return None
    figure, all_axes = plt.subplots(1, len(parts), figsize=(4.6 * len(parts), 4.2), sharey=True, squeeze=False)
    for axes, (title, part) in zip(all_axes[0], parts.items(), strict=True):
        axes.set_title(title, fontsize=11, loc="left", fontweight="bold")
        _plain(axes)
        _lines(axes, part, "L", lambda p: p["L"] * p["B"] / (p["p50_ms"] * 1e-3))
        _labels_axis(axes, part["L"])
        axes.tick_params(axis="x", labelsize=8)
        axes.set_yscale("log")
    all_axes[0, 0].set_ylabel("logits per second (labels x batch rows)")
    _caption(figure, _conditions(pd.concat(parts.values()), "B", "D", "K", "G"))
    return _legend(figure)


def time_vs_fan_in(rows: pd.DataFrame) -> plt.Figure | None:
    """Time of forward + backward against the fan-in."""
    part = _slice(rows, "time", "full", "K")
    if part.empty:
        return None
    figure, axes = _axes("Forward + backward against the fan-in", part, ("L", "B", "D", "G"))
    dense = part[(part["provider"] == "dense") & (part["status"] == "ok")]
    if not dense.empty:
        style = _style("dense") | {"marker": None, "label": "nn.Linear, which has no fan-in"}
        axes.axhline(_median(dense).iloc[-1], **style)
    _lines(axes, part[part["provider"] != "dense"], "K", _median)
    axes.set_xscale("log", base=2)
    ticks = sorted(part["K"].unique())
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xlabel("fan-in K")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(_milliseconds))
    axes.set_ylabel("time (median, 20-80 % band)")
    return _legend(figure)


def roofline(rows: pd.DataFrame) -> plt.Figure | None:
    """Reached FLOP rate against the arithmetic intensity of the work's floor, under the limits measured in the same run."""
    roofs = rows[(rows["kind"] == "roof") & (rows["status"] == "ok")]
    timed = rows[(rows["kind"] == "time") & (rows["status"] == "ok")]
    timed = timed[timed["flops"].fillna(0) > 0] if "flops" in timed else timed.iloc[:0]
    if roofs.empty or timed.empty:
        return None
    dtype = timed["dtype"].mode()[0] if timed["dtype"].nunique() > 1 else timed["dtype"].iloc[0]
    roofs, timed = roofs[roofs["dtype"] == dtype], timed[timed["dtype"] == dtype]
    timed = timed[timed["run"].isin(roofs["run"])]
    if timed.empty:
        return None
    run = _main_run(timed.drop_duplicates(["run", "provider", "mode"]))
    bandwidth, rate = roofs[roofs["run"] == run].iloc[-1][["bandwidth", "rate"]]
    largest = timed[timed["run"] == run].sort_values("L").groupby(["provider", "mode"]).tail(1)
    figure, axes = _axes("Roofline (largest point of each provider and mode)", largest, ())
    intensity = largest["flops"] / largest["floor_bytes"]
    lowest, highest = intensity.min() / 3, max(intensity.max() * 3, 4 * rate / bandwidth)
    knee = rate / bandwidth
    axes.plot([lowest, knee, highest], [lowest * bandwidth, rate, rate], color="black", linewidth=1.5, zorder=1)
    axes.text(highest, rate * 1.08, f"matrix product {rate / 1e9:,.0f} GFLOP/s", ha="right", fontsize=7.5)
    axes.text(lowest, lowest * bandwidth * 0.75, f"copy {bandwidth / 1e9:,.1f} GB/s", fontsize=7.5)
    shapes = {"forward": "o", "full": "s", "step": "^", "backward_input": "v", "backward_weight": "D", "topk": "P"}
    for name, own in largest.groupby("provider"):
        style = _style(str(name))
        for _, row in own.iterrows():
            axes.scatter(
                row["flops"] / row["floor_bytes"], row["flops"] / (row["p50_ms"] * 1e-3), color=style["color"],
                marker=shapes.get(row["mode"], "x"), s=46, zorder=3, edgecolor="white", linewidth=0.6,
            )  # fmt: skip
        axes.scatter([], [], color=style["color"], marker="o", label=style["label"])
    for mode in [m for m in shapes if m in set(largest["mode"])]:
        axes.scatter([], [], color="#555555", marker=shapes[mode], label=mode)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP per byte of the work's floor")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1e9:g} GFLOP/s"))
    return _legend(figure)
