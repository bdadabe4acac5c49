"""What stands on the README's first screen, from stored rows: of the suite ``gain``, of the accuracy studies, and of the search
among 670,091 items."""

from __future__ import annotations

import re
from pathlib import Path

from bench import answers, known_item_report
from bench.answers import REPORTS
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
LEAST = 100_000  # labels: smaller layers of the suite are for the figure
GAIN = ("<!-- gain: python -m bench first_screen -->", "<!-- end of gain -->")
ACCURACY = ("<!-- accuracy: python -m bench first_screen -->", "<!-- end of accuracy -->")

KNOWN_ITEM = ("<!-- known item: python -m bench first_screen -->", "<!-- end of known item -->")


def runs(rows: list[Row]) -> list[str]:
    """Runs of the suite that came to their end, the oldest first.

    Raises:
        ValueError: there is none.
    """
    ended = [row["run"] for row in rows if row.get("kind") == "end" and row.get("suite") == "gain"]
    if not ended:
        raise ValueError("no complete run of the suite: python -m bench run --suite gain --out reports/cpu")
    return ended


Cells = dict[str, dict[str, Row]]  # by provider and kind


def least_disturbed(rows: list[Row]) -> dict[int, Cells]:
    """Of every number of labels the rows of one run: that in which the quantiles of the head's own step lie closest,
    the newest of equals."""
    complete = runs(rows)
    found: dict[int, dict[str, Cells]] = {}
    for row in rows:
        if row.get("run") in complete and row.get("kind") in ("time", "memory") and row["L"] >= LEAST:
            cells = found.setdefault(row["L"], {}).setdefault(row["run"], {})
            cells.setdefault(row["provider"], {})[row["kind"]] = row

    def spread(cells: Cells) -> float:
        own = cells[OWN]["time"]
        return float(own["p80_ms"] / own["p20_ms"])

    return {size: min(reversed(by_run.values()), key=spread) for size, by_run in sorted(found.items())}


def _held(row: Row) -> float:
    return row["persistent_bytes"] + row["peak_bytes"]


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 9.5 else f"{ratio:.1f}x"


_NEEDS = re.compile(r"needs about ([\d.]+) GiB")


def _cell(baseline: dict[str, Row], own: dict[str, Row]) -> str:
    """Faster and smaller, or why there is no figure."""
    parts = []
    for kind, word in (("time", "faster"), ("memory", "smaller")):
        row = baseline[kind]
        if row["status"] == "oom":
            needed = _NEEDS.search(row["reason"])
            return f"does not fit (needs {needed[1]} GiB)" if needed else "does not fit"
        if row["status"] != "ok":
            parts.append(f"{row['status']}")
        else:
            ratio = speedup(own[kind], row) if kind == "time" else _held(row) / _held(own[kind])
            parts.append(f"{_times(ratio)} {word}")
    return ", ".join(parts)


def table(rows: list[Row]) -> list[str]:
    """Markdown lines: one row for each baseline, one column for each number of labels."""
    found = least_disturbed(rows)
    lines = [
        "| a training step against | " + " | ".join(f"{size:,} labels" for size in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for name, label in BASELINES.items():
        cells = [_cell(of_size[name], of_size[OWN]) for of_size in found.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    own = [
        f"{cells[OWN]['time']['p50_ms']:,.0f} ms, {_held(cells[OWN]['memory']) / 2**20:,.0f} MiB"
        for cells in found.values()
    ]
    lines.append("| a step of the fused head itself | " + " | ".join(own) + " |")
    return lines


def conditions(rows: list[Row]) -> list[str]:
    """How the table was measured, in one sentence, and where the dense layer is the better one."""
    row = list(least_disturbed(rows).values())[-1][OWN]["time"]
    where = row.get("gpu") or f"{row['cpu']}, {row['cores']} cores"
    line = (
        f"Measured on {where}: D={row['D']}, {row['K']} connections per label, {row['B']} rows, {row['dtype']}, loss and SGD "
        "update included, all checked against float64 first. Again: `python -m bench run --suite gain`."
    )
    labels, fewest = answers.break_even(rows, OWN)
    words = f"The step is faster than that of `nn.Linear` from {labels:,} labels on{', the fewest tried' * fewest}."
    return [f"{line} {words}"]


def answers_of(rows: list[Row]) -> list[str]:
    return [*table(rows), "", *conditions(rows)]


def known_item() -> list[str]:
    """All labels under the limit of memory, in words, beside the others under the same limit."""
    rows = {row["name"]: row for row in known_item_report.read(REPORTS / "scale") if row["status"] == "ok"}
    own = rows.pop("sparse_xmc")
    others = [
        f"{known_item_report.NAMES[name]} {row['P@1']:.1f} ({row['cpu_seconds']:.0f} s, {row['peak_mib'] / 1024:.1f} GiB)"
        for name, row in sorted(rows.items(), key=lambda named: -named[1]["P@1"])
    ]
    took = f"{own['cpu_seconds']:.0f} CPU seconds and {own['peak_mib'] / 1024:.1f} GiB"
    return [
        f"**{own['rows']:,} real labels in {own['limit'] / 1e9:.0f} GB**, text to evaluation, one command: "
        f"P@1 {own['P@1']:.1f} in {took}. "
        f"Under the same limit: {', '.join(others)}. [How](reports/scale/known_item.md); again: `make scale`."
    ]


def blocks() -> dict[tuple[str, str], list[str]]:
    """What stands between the README's marks."""
    rows = RowFile(REPORTS / "cpu").read()
    return {GAIN: answers_of(rows), ACCURACY: answers.accuracy(), KNOWN_ITEM: known_item()}


def write(readme: Path = REPOSITORY / "README.md") -> None:
    """Puts the answers between the marks in the README.

    Raises:
        ValueError: the README has no such marks, or there is no complete run.
    """
    text = readme.read_text()
    for (begin, end), lines in blocks().items():
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"{readme} must hold the lines {begin!r} and {end!r}")
        text = "\n".join([before + begin, *lines, end + after])
    readme.write_text(text)
