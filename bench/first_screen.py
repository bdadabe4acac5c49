"""The table on the README's first screen, from the rows of the newest complete run of the suite ``gain``."""

from __future__ import annotations

from pathlib import Path

from bench.environment import REPOSITORY
from bench.report import speedup
from bench.rows import Row, RowFile

OWN = "sparse_xmc_fused"
BASELINES = {
    "dense": "`nn.Linear`",
    "torch_csr": "`torch.sparse` CSR",
    "embedding_bag": "`F.embedding_bag`",
    "bottleneck": "low rank, as many FLOPs",
}
BEGIN, END = "<!-- gain: python -m bench first_screen -->", "<!-- end of gain -->"


def newest_run(rows: list[Row]) -> list[Row]:
    """Rows of the newest run of the suite that came to its end.

    Raises:
        ValueError: there is none.
    """
    ended = [row["run"] for row in rows if row.get("kind") == "end" and row.get("suite") == "gain"]
    if not ended:
        raise ValueError("no complete run of the suite: python -m bench run --suite gain --out reports/cpu")
    return [row for row in rows if row.get("run") == ended[-1]]


def _held(row: Row) -> float:
    return row["persistent_bytes"] + row["peak_bytes"]


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 9.5 else f"{ratio:.1f}x"


def _cell(baseline: dict[str, Row], own: dict[str, Row]) -> str:
    """Faster and smaller, or why there is no figure."""
    parts = []
    for kind, word in (("time", "faster"), ("memory", "smaller")):
        row = baseline[kind]
        if row["status"] == "oom":
            return "does not fit"
        if row["status"] != "ok":
            parts.append(f"{row['status']}")
        else:
            ratio = speedup(own[kind], row) if kind == "time" else _held(row) / _held(own[kind])
            parts.append(f"{_times(ratio)} {word}")
    return ", ".join(parts)


def table(rows: list[Row]) -> list[str]:
    """Markdown lines: one row for each baseline, one column for each number of labels."""
    run = newest_run(rows)
    found: dict[int, dict[str, dict[str, Row]]] = {}
    for row in run:
        if row.get("kind") in ("time", "memory"):
            found.setdefault(row["L"], {}).setdefault(row["provider"], {})[row["kind"]] = row
    sizes = sorted(found)
    lines = [
        "| a training step against | " + " | ".join(f"{L:,} labels" for L in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for name, label in BASELINES.items():
        cells = [_cell(found[L][name], found[L][OWN]) for L in sizes]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    own = [
        f"{found[L][OWN]['time']['p50_ms']:,.0f} ms, {_held(found[L][OWN]['memory']) / 2**20:,.0f} MiB" for L in sizes
    ]
    lines.append("| a step of the fused head itself | " + " | ".join(own) + " |")
    return lines


def write(folder: Path = REPOSITORY / "reports" / "cpu", readme: Path = REPOSITORY / "README.md") -> None:
    """Puts the table between the marks in the README.

    Raises:
        ValueError: the README has no such marks, or there is no complete run.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} must hold the lines {BEGIN!r} and {END!r}")
    lines = "\n".join(table(RowFile(folder).read()))
    readme.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}")
