"""Figures from stored rows: every one that the rows allow. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench import figure_style as look
from bench.figure_style import Named, Value
from bench.first_screen import BASELINES, OWN
from bench.providers import providers
from bench.roofline_figure import roofline
from bench.rows import Row, RowFile, newest

_POINT = ["L", "D", "K", "G", "B", "dtype", "device"]
_AXES = {"L": "labels", "K": "fan_in", "B": "batch_size", "D": "in_features", "G": "group_size"}
_WORDS = {"L": "labels", "K": "connections per label K", "B": "rows B", "D": "features D", "G": "labels per group G"}
_MODES = {
    "step": "Training step",
    "forward": "Forward",
    "full": "Forward + backward",
    "backward_input": "Gradient of the input",
    "backward_weight": "Gradient of the weights",
    "softmax": "Softmax, loss and gradients",
    "topk": "Top-k",
    "rewire": "Rewiring",
}


def frame(rows: list[Row]) -> pd.DataFrame:
    return pd.DataFrame([row for row in rows if "status" in row and row["kind"] in ("time", "memory", "roof")])


def plot_folder(folder: Path) -> list[Path]:
    """Draws every figure that the rows allow; returns the files written.

    The headline and the roofline show one run; the others show the newest measurement of every job.
    """
    every = RowFile(folder).read()
    rows = frame(newest(every))
    if rows.empty:
        raise ValueError(f"no rows in {folder}: run `python -m bench run --out {folder}` first")
    written = []
    for name, draw in _figures(rows, frame(every)):
        figure = draw()
        if figure is not None:
            path = Path(folder) / "figures" / f"{name}.png"
            look.save(figure, path)
            written.append(path)
    return written


def _figures(rows: pd.DataFrame, every: pd.DataFrame) -> Iterator[tuple[str, partial[Figure | None]]]:
    yield "headline", partial(headline, every)
    yield "providers", partial(by_provider, every)
    for kind, word in (("time", "time"), ("memory", "peak_memory")):
        for mode in _MODES:
            for axis, name in _AXES.items():
                yield f"{mode}_{word}_vs_{name}", partial(along, rows, kind, mode, axis)
    yield "roofline", partial(roofline, every)


def _slice(rows: pd.DataFrame, kind: str, mode: str, axis: str) -> pd.DataFrame:
    """Rows of the best covered sweep along one axis: everything else of the point is constant."""
    part = rows[(rows["kind"] == kind) & (rows["mode"] == mode)]
    if part.empty:
        return part
    fixed = [c for c in _POINT if c != axis]
    spread = part[part["status"] == "ok"].groupby(fixed)[axis].nunique()
    if spread.empty or spread.max() < 2:
        return part.iloc[:0]
    chosen = dict(zip(fixed, spread.idxmax(), strict=True))
    for column, value in chosen.items():
        part = part[part[column] == value]
    return part


def along(rows: pd.DataFrame, kind: str, mode: str, axis: str) -> Figure | None:
    """Time or memory of a mode against one field of the point, a line per provider."""
    part = _slice(rows, kind, mode, axis)
    if part.empty:
        return None
    figure, all_axes = look.canvas(3.9)
    axes = all_axes[0, 0]
    flat = part[(part["provider"] == "dense") & (part["status"] == "ok")] if axis == "K" else part.iloc[:0]
    drawn = part[part["provider"] != "dense"] if len(flat) else part
    value = _scale(axes, drawn, axis, kind)
    named = _lines(axes, drawn, axis, value)
    if len(flat):  # nn.Linear has no fan-in
        level, dense = float(value(flat).iloc[-1]), look.style("dense")
        axes.axhline(level, color=dense["color"], linestyle="--", linewidth=1.4)
        named.append(Named(axes.get_xlim()[1], level, dense["label"], dense["color"]))
    what = "peak memory" if kind == "memory" else "time"
    look.titled(axes, f"{_MODES[mode]}: {what} against {_WORDS[axis].rpartition(' ')[0] or _WORDS[axis]}")
    look.beside(axes, named)
    look.caption(figure, look.conditions(part, *(name for name in ("L", "B", "D", "K", "G") if name != axis)))
    return figure


def _scale(axes: Axes, part: pd.DataFrame, axis: str, kind: str) -> Value:
    """Both axes, logarithmic; returns what stands on the vertical one."""
    axes.set_xscale("log")
    ticks = _apart(sorted(part[axis].unique()))
    axes.set_xticks(ticks, [look.count(t) for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlabel(_WORDS[axis], fontsize=look.TEXT)
    axes.set_yscale("log", base=2 if kind == "memory" else 10)
    axes.yaxis.set_major_formatter(FuncFormatter(look.in_bytes if kind == "memory" else look.in_seconds))
    return look.held if kind == "memory" else look.median


def _apart(values: list[float]) -> list[float]:
    """Of the values on a logarithmic axis those that have room for their numbers."""
    gap = (values[-1] / values[0]) ** 0.09
    kept = values[:1]
    for value in values[1:]:
        if value >= gap * kept[-1]:
            kept.append(value)
    return kept


def _lines(axes: Axes, part: pd.DataFrame, axis: str, value: Value) -> list[Named]:
    """A line per provider that has two points or more; returns the last points, with names.

    A line joins points of one run, the one with the most of them; the others stand alone and hollow. Of a provider whose
    next point takes more memory than there is, the name says so.
    """
    named = []
    order = list(providers())
    for name in sorted(part["provider"].unique(), key=lambda n: order.index(n) if n in order else len(order)):
        own = part[part["provider"] == name].sort_values(axis)
        good = own[own["status"] == "ok"]
        if good[axis].nunique() < 2:
            continue
        style = look.style(name)
        joined = good["run"] == _main_run(good)
        line, alone = good[joined], good[~joined]
        axes.plot(line[axis], value(line), **style)
        if not alone.empty:
            axes.plot(alone[axis], value(alone), **(style | {"linestyle": "none", "markerfacecolor": "white"}))
        if value is look.median and line[["p20_ms", "p80_ms"]].notna().all(axis=None):
            axes.fill_between(line[axis], line["p20_ms"], line["p80_ms"], color=style["color"], alpha=0.15, linewidth=0)
        lost = own[(own["status"] == "oom") & (own[axis] > good[axis].max())]
        text = style["label"] + (f", {look.count(lost[axis].min())}: does not fit" if len(lost) else "")
        last = good.iloc[-1:]
        named.append(
            Named(last[axis].iloc[0], value(last).iloc[0], text, style["color"], name.startswith("sparse_xmc"))
        )
    return named


def _main_run(rows: pd.DataFrame) -> str:
    """The run with the most rows, the newest of several."""
    counts = rows["run"].value_counts()
    return str(counts[counts == counts.max()].index.max())


def headline(rows: pd.DataFrame) -> Figure | None:
    """Peak memory and time of a training step against the number of labels, side by side, of one run.

    The run is the newest of those in which the fused head and the dense layer were taken at the most numbers of labels.
    """
    good = rows[(rows["status"] == "ok") & (rows["mode"] == "step")]
    found = {}
    for run, part in good.groupby("run"):
        sizes = [_slice(part, kind, "step", "L") for kind in ("memory", "time")]
        both = [set(s[s["provider"] == OWN]["L"]) & set(s[s["provider"] == "dense"]["L"]) for s in sizes if len(s)]
        if len(both) == 2 and len(both[0] & both[1]) > 1:
            found[len(both[0] & both[1]), str(run)] = sizes
    if not found:
        return None
    memory, time = found[max(found)]
    figure, axes = look.canvas(3.5, columns=2)
    figure.subplots_adjust(wspace=0.32)
    shown = {OWN: "fused head", **{name: label.replace("`", "").partition(",")[0] for name, label in BASELINES.items()}}
    for panel, part, kind, title, word in (
        (axes[0, 0], memory, "memory", "Memory of a training step", "smaller"),
        (axes[0, 1], time, "time", "Time of a training step", "faster"),
    ):
        part = part[part["provider"].isin(shown)]
        value = _scale(panel, part, "L", kind)
        named = _lines(panel, part, "L", value)
        gain = _mark_gain(panel, part, value)
        look.titled(panel, f"{title}: {gain:.0f}x {word}")
        if kind == "time":
            labels = {look.style(name)["label"]: text for name, text in shown.items()}
            look.beside(panel, [name._replace(text=labels.get(name.text, name.text)) for name in named])
    look.caption(figure, look.conditions(pd.concat([memory, time]), "B", "D", "K"))
    return figure


def _mark_gain(axes: Axes, part: pd.DataFrame, value: Value) -> float:
    """The ratio of the dense layer to the fused head at the most labels that both have, and an arrow there."""
    pairs = {name: part[part["provider"] == name].set_index("L") for name in ("dense", OWN)}
    place = max(set(pairs["dense"].index) & set(pairs[OWN].index))
    dense, own = (float(value(pairs[name].loc[[place]]).iloc[0]) for name in ("dense", OWN))
    axes.annotate("", (place, own), (place, dense), arrowprops={"arrowstyle": "->", "color": "black", "linewidth": 1.4})
    return dense / own


def by_provider(rows: pd.DataFrame) -> Figure | None:
    """Time of every provider at one point of each mode: of those with the most providers in one run the largest, newest."""
    timed = rows[(rows["kind"] == "time") & (rows["status"] == "ok")]
    panels = []
    for mode in _MODES:
        points = [part for _, part in timed[timed["mode"] == mode].groupby([*_POINT, "run"])]
        best = max(points, key=lambda p: (p["provider"].nunique(), p["L"].iloc[0], p["run"].iloc[0]), default=None)
        if best is not None and best["provider"].nunique() > 1:
            panels.append((mode, best.drop_duplicates("provider", keep="last").sort_values("p50_ms", ascending=False)))
    if not panels:
        return None
    sizes = [len(part) for _, part in panels]
    height = 0.85 * len(panels) + 0.22 * sum(sizes)
    options = {"height_ratios": sizes, "hspace": 0.7 * len(panels) / (0.22 * sum(sizes))}
    figure, axes = look.canvas(height, rows=len(panels), gridspec_kw=options)
    for panel, (mode, part) in zip(axes[:, 0], panels, strict=True):
        _bars(panel, part)
        first = part.iloc[0]
        look.titled(panel, f"{_MODES[mode]}, {first['L']:,} labels, K={first['K']}, D={first['D']}, B={first['B']}")
    look.caption(figure, look.conditions(pd.concat([part for _, part in panels])))
    return figure


def _bars(axes: Axes, part: pd.DataFrame) -> None:
    """Times as bars, each with its time and how many times faster than the dense layer it is."""
    dense = part[part["provider"] == "dense"]["p50_ms"]
    places = range(len(part))
    styles = [look.style(name) for name in part["provider"]]
    axes.barh(places, part["p50_ms"], color=[s["color"] for s in styles], height=0.7)
    axes.set_yticks(places, [s["label"] for s in styles], fontsize=look.TEXT)
    axes.grid(False, axis="y")
    axes.set_xscale("log")
    axes.set_xlim(part["p50_ms"].min() / 1.6, part["p50_ms"].max() * 3)
    axes.xaxis.set_major_formatter(FuncFormatter(look.in_seconds))
    axes.xaxis.set_minor_formatter(NullFormatter())
    for place, name, time in zip(places, part["provider"], part["p50_ms"], strict=True):
        times = f", {dense.iloc[0] / time:.2g}x" if len(dense) and name != "dense" else ""
        axes.annotate(
            look.in_seconds(time) + times, (time, place), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=look.SMALL + 0.5, color=look.INK,
        )  # fmt: skip
