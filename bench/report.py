"""Tables from stored rows. Measures nothing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.point import WORK
from bench.providers import providers
from bench.rows import Row, RowFile, newest

BASELINE = "dense"
_POINT = ["mode", "L", "D", "K", "G", "B", "dtype", "device"]


class IncomparableRows(ValueError):
    """Two rows do not stand for the same work, or one of them was never proved right."""


def speedup(row: Row, baseline: Row) -> float:
    """How many times faster ``row`` is than ``baseline``.

    Raises:
        IncomparableRows: a row failed or was not checked, or the two differ in what they computed or where.
    """
    for name, candidate in (("row", row), ("baseline", baseline)):
        if candidate.get("status") != "ok" or candidate.get("checked") is not True:
            raise IncomparableRows(f"the {name} ({candidate.get('provider')}) has no checked result")
    for column in ("kind", *_POINT, "work", "run"):
        if row.get(column) != baseline.get(column):
            raise IncomparableRows(f"{column} differs: {row.get(column)!r} against {baseline.get(column)!r}")
    if row["kind"] != "time" or sorted(row["work"]) != sorted(WORK[row["mode"]]):
        raise IncomparableRows(f"not a timing of the whole work of {row['mode']}: {row['work']}")
    return float(baseline["p50_ms"]) / float(row["p50_ms"])


def _speedup_text(row: Row, baseline: Row | None) -> str:
    if baseline is None:
        return ""
    try:
        return f"{speedup(row, baseline):.1f}x"
    except IncomparableRows:
        return ""


def _roofs(rows: list[Row]) -> dict[tuple[str, str], Row]:
    """The measured limits by run and dtype."""
    return {(r["run"], r["dtype"]): r for r in rows if r["kind"] == "roof" and r["status"] == "ok"}


def _limit_share(row: Row, roofs: dict[tuple[str, str], Row]) -> str:
    """Blank where the run of the row measured no limits."""
    roof = roofs.get((row.get("run"), row["dtype"]))
    if roof is None:
        return ""
    single = roofs.get((row["run"], "float32"), roof)
    rate = max(roof["rate"], single["rate"])  # 16-bit numbers can be computed with as float32
    seconds = max(row["floor_bytes"] / roof["bandwidth"], row["flops"] / rate)
    return f"{100 * seconds / (row['p50_ms'] * 1e-3):.0f} %"


def _mib(value: float) -> str:
    return f"{value / 2**20:,.1f}"


def _millijoules(row: Row) -> str:
    return "" if row.get("joules") is None else f"{1e3 * row['joules']:.1f}"


def _label(row: Row) -> str:
    known = providers().get(row["provider"])
    return known.label if known else str(row["provider"])


def _sizes(row: Row) -> str:
    """The point of a row, with the group size of a provider that has its own."""
    own = getattr(providers().get(row["provider"]), "group_size", None)
    return " | ".join(f"{value:,}" for value in (row["L"], row["D"], row["K"], own or row["G"], row["B"]))


def time_tables(rows: list[Row]) -> list[str]:
    """One Markdown table per mode: median, band, speed-up over the dense layer, share of the machine's limit."""
    roofs = _roofs(rows)
    names = providers()
    out = []
    for mode in WORK:
        timed = [r for r in rows if r["kind"] == "time" and r["mode"] == mode]
        if not timed:
            continue
        out += [
            f"### {mode}: {', '.join(sorted(WORK[mode]))}",
            "",
            f"| L | D | K | G | B | dtype | provider | median ms | 20-80 % ms | vs {BASELINE} | share of limit | mJ |",
            "|---:|---:|---:|---:|---:|---|---|---:|---:|---:|---:|---:|",
        ]
        for row in sorted(timed, key=lambda r: _order(r, list(names))):
            head = f"| {_sizes(row)} | {row['dtype']} | {_label(row)} | "
            if row["status"] != "ok":
                out.append(f"{head}{row['status']}: {row['reason']} | | | | |")
                continue
            baseline = next((r for r in timed if r["provider"] == BASELINE and _same_point(r, row)), None)
            out.append(
                f"{head}{row['p50_ms']:.3f} | {row['p20_ms']:.3f}-{row['p80_ms']:.3f} | "
                f"{_speedup_text(row, baseline)} | {_limit_share(row, roofs)} | "
                f"{_millijoules(row)} |"
            )
        out.append("")
    return out


def memory_table(rows: list[Row]) -> list[str]:
    """Markdown table of the memory rows, in MiB."""
    weighed = [r for r in rows if r["kind"] == "memory"]
    if not weighed:
        return []
    names = providers()
    out = [
        "### Peak memory",
        "",
        "| mode | L | D | K | G | B | dtype | provider | weights + indices MiB | peak above MiB | share of B*L |",
        "|---|---:|---:|---:|---:|---:|---|---|---:|---:|---:|",
    ]
    for row in sorted(weighed, key=lambda r: (r["mode"], *_order(r, list(names)))):
        head = f"| {row['mode']} | {_sizes(row)} | {row['dtype']} | {_label(row)} | "
        if row["status"] != "ok":
            out.append(f"{head}{row['status']}: {row['reason']} | | |")
            continue
        logits = row["B"] * row["L"] * (4 if row["dtype"] == "float32" else 2)
        share = f"{100 * row['peak_bytes'] / logits:.1f} %"
        out.append(f"{head}{_mib(row['persistent_bytes'])} | {_mib(row['peak_bytes'])} | {share} |")
    return [*out, ""]


def training_table(rows: list[Row]) -> list[str]:
    """Markdown table of the training demo: the newest result of every data set and head."""
    trained = [r for r in rows if r["kind"] == "training"]
    if not trained:
        return []
    out = [
        "### Training: the same model with a fixed fan-in and with a dense head",
        "",
        "| data | head | intermediate | epochs | P@1 | P@3 | P@5 | head MiB | seconds | commit |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in trained:
        head = "dense" if row["head"] == "dense" else f"fan-in {row['fan_in']:.0f}"
        scores = " | ".join(f"{row[metric]:.2f}" for metric in ("P@1", "P@3", "P@5"))
        sizes = f"{row['hidden']:,.0f} | {row['epochs']:.0f}"
        end = f"{_mib(row['head_bytes'])} | {row['seconds']:.0f} | `{str(row['commit'])[:8]}`"
        out.append(f"| {row['data']} | {head} | {sizes} | {scores} | {end} |")
    return [*out, ""]


def _same_point(a: Row, b: Row) -> bool:
    return all(a.get(c) == b.get(c) for c in (*_POINT, "run"))


def _order(row: Row, names: list[str]) -> tuple[object, ...]:
    place = names.index(row["provider"]) if row["provider"] in names else len(names)
    return (row["dtype"], row["D"], row["B"], row["L"], row["G"], row["K"], place)


def provenance(rows: list[Row]) -> list[str]:
    """Where the rows come from: every command, commit and machine among them, with the limits measured in the run."""
    frame, roofs = pd.DataFrame(rows), _roofs(rows)
    out = []
    for (run, command), part in frame[frame["kind"] != "roof"].groupby(["run", "command"], dropna=True):
        first = part.iloc[0]
        state = " with uncommitted changes" if bool(part["dirty"].any()) else ""
        where = first["gpu"] if isinstance(first.get("gpu"), str) else f"{first['cpu']}, {first['cores']} cores"
        versions = ", ".join(f"{p} {first[p]}" for p in ("torch", "triton", "numba", "numpy") if first.get(p))
        out.append(
            f"- run `{run}`: `{command}`, {len(part)} rows, commit `{str(first['commit'])[:12]}`{state}, "
            f"{where}, {versions}"
        )
        out += [
            f"  - measured limits ({dtype}): copy {roof['bandwidth'] / 1e9:,.1f} GB/s, "
            f"matrix product {roof['rate'] / 1e9:,.4g} GFLOP/s"
            for (measured_in, dtype), roof in roofs.items()
            if measured_in == run
        ]
    return out


def write_table(folder: Path) -> Path:
    """Writes ``table.md`` beside the rows."""
    rows = newest(RowFile(folder).read())
    if not rows:
        raise ValueError(f"no rows in {folder}")
    text = [
        "# Benchmark tables",
        "",
        "Made by `python -m bench table` from `rows.jsonl`. Every timed result was first compared with a dense float64",
        "computation on a small instance; variants of a point are interleaved, with cold caches. The speed-up is over",
        "`nn.Linear` doing the same work in the same run; the share of the limit is the larger of bytes / copy bandwidth",
        "and FLOPs / matrix rate, both measured in the same run and each tensor counted once per product, over the",
        "median time.",
        "",
        *provenance(rows),
        "",
        *time_tables(rows),
        *memory_table(rows),
        *training_table(rows),
    ]
    path = Path(folder) / "table.md"
    path.write_text("\n".join(text))
    return path
