"""How figures look: read in five seconds at the README's width, on white and on dark pages, by the colour-blind too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.providers import providers

WIDTH = 8.0  # inches, 800 pixels in the README: a point of text is 1.4 pixels there
TEXT, SMALL = 9.0, 7.5
INK, GREY = "#222222", "#666666"
# Okabe and Ito's palette, for studies whose curves are no providers
PALETTE = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
_MARKERS = "osD^vP*Xh<>pd8"
_TOGETHER = ("sparse_xmc_fused", "dense", "torch_csr", "embedding_bag", "bottleneck", "sparse_xmc")  # in many figures
_ROW = 1.35  # height of a line of text, in its size


class Named(NamedTuple):
    """A point of a figure and what it is called beside the axes."""

    x: float
    y: float
    text: str
    colour: str
    strong: bool = False


def canvas(height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **options)
    figure.subplots_adjust(left=0.09, bottom=0.5 / height, top=1 - 0.35 / height)
    for one in axes.flat:
        plain(one)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """On a white card, which dark pages show as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, facecolor="white", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
    plt.close(figure)


def plain(axes: Axes) -> None:
    axes.grid(True, which="major", color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=TEXT - 0.5, colors=INK)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def titled(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=TEXT + 1.5, loc="left", fontweight="bold", color=INK)


def caption(figure: Figure, text: str) -> None:
    """Small print below everything."""
    figure.text(0.0, 0.0, text, fontsize=SMALL, color=GREY, ha="left", va="top")


def style(name: str) -> dict[str, Any]:
    """Colour, marker and line of a provider: ours are drawn through, the others dashed."""
    known = providers()
    order = list(dict.fromkeys([*_TOGETHER, *known]))
    place = order.index(name) if name in order else len(order)
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


def beside(axes: Axes, points: Sequence[Named], size: float = TEXT) -> None:
    """Writes the points' names right of the axes, in their order of height, with a line to each; none covers another.

    To be called when the limits of the axes are final.
    """
    figure = axes.get_figure()
    assert figure is not None
    figure.canvas.draw()
    height = axes.get_window_extent().height / figure.dpi * 72
    to_axes = axes.transData + axes.transAxes.inverted()
    wanted = [(float(to_axes.transform((p.x, p.y))[1]), p) for p in points]
    wanted.sort(key=lambda pair: pair[0])
    places = spread([y for y, _ in wanted], size * _ROW / height)
    for place, (_, point) in zip(places, wanted, strict=True):
        line = {"arrowstyle": "-", "color": point.colour, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            "", (point.x, point.y), (1.03, place), textcoords="axes fraction", arrowprops=line, annotation_clip=False
        )
        weight = "bold" if point.strong else "normal"
        axes.text(
            1.04, place, point.text, transform=axes.transAxes, va="center", fontsize=size, color=INK, fontweight=weight
        )


def near(axes: Axes, points: Sequence[Named], others: Sequence[tuple[float, float]], size: float = TEXT) -> None:
    """Writes the points' names next to them, where they cover neither each other nor any of the ``others``.

    To be called when the limits of the axes are final. A name for which there is no room near its point goes where it
    covers least.
    """
    figure = axes.get_figure()
    assert figure is not None
    figure.canvas.draw()
    pixel = figure.dpi / 72
    taken = [(x - 4 * pixel, y - 4 * pixel, x + 4 * pixel, y + 4 * pixel) for x, y in axes.transData.transform(others)]
    frame = axes.get_window_extent().extents
    for point in points:
        weight = "bold" if point.strong else "normal"
        text = axes.annotate(
            point.text, (point.x, point.y), xytext=(0, 0), textcoords="offset points", fontsize=size, color=INK,
            fontweight=weight, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": point.colour, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 3},
        )  # fmt: skip
        x, y = axes.transData.transform((point.x, point.y))
        width, height = text.get_window_extent().width, text.get_window_extent().height
        boxes = [(x + dx, y + dy, x + dx + width, y + dy + height) for dx, dy in _places(width, height, 6 * pixel)]
        best = min(boxes, key=lambda box: sum(_shared(box, other) for other in taken) + _outside(box, frame))
        text.set_position(((best[0] - x) / pixel, (best[1] - y) / pixel))
        taken.append(best)


_Box = tuple[float, float, float, float]


def _places(width: float, height: float, gap: float) -> list[tuple[float, float]]:
    """Lower left corners of a text relative to its point, the nearest first."""
    places = []
    for distance in (1, 2, 3.5, 5, 7, 10, 14):
        step = distance * gap
        for up in (0, 1, -1):
            middle = -height / 2 + up * (height / 2 + step)
            places += [(step, middle), (-step - width, middle)]
        places += [(-width / 2, step), (-width / 2, -step - height)]
    return places


def _shared(a: _Box, b: Sequence[float]) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: _Box, frame: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1]) - _shared(box, frame)


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Ascending places nearest to those wanted (ascending too) that lie at least ``gap`` apart and, if they can, in [0, 1]."""
    blocks: list[tuple[float, int]] = []  # mean of the members' wishes, each less its distance from the first; members
    for place, value in enumerate(wanted):
        blocks.append((value - place * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, m), (b, n) = blocks[-2:]
            blocks[-2:] = [((a * m + b * n) / (m + n), m + n)]
    starts = [start for start, members in blocks for _ in range(members)]
    most = max(0.0, 1.0 - gap * (len(wanted) - 1))
    return [min(max(start, 0.0), most) + place * gap for place, start in enumerate(starts)]


def count(value: float) -> str:
    return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value / 1e3:.0f}k" if value >= 1e3 else f"{value:g}"


def in_bytes(value: float, _: int = 0) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def in_seconds(milliseconds: float, _: int = 0) -> str:
    if milliseconds >= 1e3:
        return f"{milliseconds / 1e3:.3g} s"
    return f"{milliseconds:.3g} ms" if milliseconds >= 0.1 else f"{milliseconds * 1e3:.3g} us"


def conditions(part: pd.DataFrame, *names: str) -> str:
    first = part.iloc[0]
    values = ", ".join([*(f"{name}={first[name]}" for name in names), str(first["dtype"])])
    gpu = first.get("gpu")
    where = gpu if isinstance(gpu, str) else f"{first['cpu']}, {first['cores']} cores"
    commits = ", ".join(sorted({str(c)[:8] for c in part["commit"]}))
    return f"{values}; {where}, torch {first['torch']}, commit {commits}"


Value = Callable[[pd.DataFrame], pd.Series]


def held(part: pd.DataFrame) -> pd.Series:
    """Weights, indices and the peak above them."""
    return part["peak_bytes"] + part["persistent_bytes"]


def median(part: pd.DataFrame) -> pd.Series:
    return part["p50_ms"]
