"""Tables and the figure of ``bench.studies.direct``, from its rows; measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median, stdev

from bench.environment import REPOSITORY
from bench.rows import Row

PAGE = REPOSITORY / "reports" / "accuracy.md"
FIGURE = REPOSITORY / "reports" / "accuracy" / "tail.png"
BEGIN, END = "<!-- direct: written by `python -m bench.studies.direct report` -->", "<!-- direct: end -->"
_K = (1, 3, 5)


def _cell(rows: Sequence[Row], name: str) -> str:
    values = [row[name] for row in rows]
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _triple(rows: Sequence[Row], kind: str) -> str:
    return " / ".join(_cell(rows, f"{kind}@{k}") for k in _K)


def test_table(rows: Sequence[Row]) -> list[str]:
    """A line for each set and effort, seeds together."""
    lines = [
        "| set | effort | seeds | P@1 / 3 / 5 | PSP@1 / 3 / 5 | CPU s | peak MiB | run on disk |",
        "|---|---|--:|---|---|--:|--:|--:|",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["effort"]), []).append(row)
    for (name, effort), own in groups.items():
        cpu, peak, disk = (median(row[key] for row in own) for key in ("cpu_s", "peak_mib", "disk_mb"))
        cells = [name, effort, str(len(own)), _triple(own, "P"), _triple(own, "PSP")]
        lines.append("| " + " | ".join([*cells, f"{cpu:.0f}", f"{peak:.0f}", f"{disk:.1f} MB"]) + " |")
    return lines


def parts_table(rows: Sequence[Row]) -> list[str]:
    """A line for each set and part left out."""
    lines = ["| set | settings | P@1 / 3 / 5 | PSP@1 / 3 / 5 | CPU s of solving |", "|---|---|---|---|--:|"]
    for row in rows:
        if row["tail"] == 0:
            cells = [row["set"], row["part"], _triple([row], "P"), _triple([row], "PSP"), f"{row['cpu_s']:.0f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def draw(rows: Sequence[Row]) -> bool:
    """P@1 against PSP@1 for each weight of the tail, a panel for each set; False: no set has two weights."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, list[Row]] = {}
    for row in rows:
        if row["part"] == "default":
            curves.setdefault(row["set"], []).append(row)
    curves = {name: sorted(own, key=lambda row: row["tail"]) for name, own in curves.items() if len(own) > 1}
    if not curves:
        return False
    figure = Figure(figsize=(4.6 * len(curves), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, own) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        axes.plot([row["PSP@1"] for row in own], [row["P@1"] for row in own], "o-")
        at: dict[tuple[float, float], list[str]] = {}
        for row in own:
            at.setdefault((row["PSP@1"], row["P@1"]), []).append(f"{row['tail']:g}")
        for point, tails in at.items():
            axes.annotate(", ".join(tails), point, xytext=(4, 4), textcoords="offset points")
        axes.margins(0.15)
        axes.set(title=f"{name}: --tail 0 to 1", xlabel="PSP@1, %", ylabel="P@1, %")
    figure.savefig(FIGURE, dpi=120, metadata={"Software": None})
    return True


def write_report(test: Sequence[Row], dev: Sequence[Row]) -> None:
    """Rewrites what stands between the marks of ``reports/accuracy.md``."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not rest or END not in page:
        raise ValueError(f"{PAGE} lacks the marks {BEGIN} and {END}")
    drawn = ["", "![P@1 against PSP@1](accuracy/tail.png)"] if draw(dev) else []
    lines = [
        BEGIN,
        "",
        "Test splits:",
        "",
        *test_table(test),
        "",
        "Rows held out from training:",
        "",
        *parts_table(dev),
    ]
    lines += [*drawn, "", END]
    PAGE.write_text(before + "\n".join(lines) + after, encoding="utf-8")
