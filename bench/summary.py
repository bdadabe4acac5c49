"""The end of a run in words: how many times faster and smaller than the dense layer, with the spread."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.providers import providers
from bench.report import BASELINE, IncomparableRows, speedup
from bench.rows import Row, newest

_POINT = ("mode", "L", "D", "K", "G", "B", "dtype", "device")
_HEADER = (
    "mode",
    "L",
    "D",
    "K",
    "B",
    "dtype",
    "provider",
    "median ms",
    f"times faster than {BASELINE}",
    "memory MiB",
    "times smaller",
)


def _by_point(rows: Iterable[Row]) -> dict[tuple[object, ...], dict[str, dict[str, Row]]]:
    """Rows by point, provider and kind."""
    found: dict[tuple[object, ...], dict[str, dict[str, Row]]] = {}
    for row in rows:
        if row["kind"] in ("time", "memory"):
            point = found.setdefault(tuple(row[name] for name in _POINT), {})
            point.setdefault(row["provider"], {})[row["kind"]] = row
    return found


def times_faster(row: Row, baseline: Row) -> str:
    """Ratio of the medians, and the ratios of the outer quantiles against each other."""
    low, high = baseline["p20_ms"] / row["p80_ms"], baseline["p80_ms"] / row["p20_ms"]
    return f"{speedup(row, baseline):.1f} ({low:.1f} to {high:.1f})"


def _bytes(row: Row | None) -> float | None:
    """Weights, indices and the peak above them; of what was predicted to be too large nothing is known."""
    return row["persistent_bytes"] + row["peak_bytes"] if row is not None and row["status"] == "ok" else None


def _cells(name: str, own: dict[str, Row], dense: dict[str, Row]) -> list[str]:
    timed, known = own.get("time"), providers().get(name)
    cells = [known.label if known else name, "", "", "", ""]
    if timed is not None:
        cells[1] = f"{timed['p50_ms']:.3f}" if timed["status"] == "ok" else f"{timed['status']}: {timed['reason']}"
        try:
            cells[2] = times_faster(timed, dense["time"]) if timed["status"] == "ok" else ""
        except (KeyError, IncomparableRows):
            cells[2] = ""
    held, dense_held = _bytes(own.get("memory")), _bytes(dense.get("memory"))
    if held is not None:
        cells[3] = f"{held / 2**20:,.1f}"
        cells[4] = "" if dense_held is None else f"{dense_held / held:.1f}"
    return cells


def table(rows: list[Row], run: str) -> list[list[str]]:
    """Header and lines of the summary of one run."""
    lines = [list(_HEADER)]
    for point, found in _by_point(newest(row for row in rows if row.get("run") == run)).items():
        mode, L, D, K, _, B, dtype, _ = point
        for name, own in found.items():
            lines.append(
                [f"{v:,}" if isinstance(v, int) else str(v) for v in (mode, L, D, K, B, dtype)]
                + _cells(name, own, found.get(BASELINE, {}))
            )
    return lines


def write(rows: list[Row], run: str, folder: Path) -> str:
    """Writes ``summary.md`` (Markdown) and returns the same table for a terminal."""
    lines = table(rows, run)
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text.insert(1, "|" + "---|" * len(_HEADER))
    (folder / "summary.md").write_text("\n".join(text) + "\n")
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
