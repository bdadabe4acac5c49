"""``reports/compare.md``: this project beside other extreme classifiers, from the rows of ``bench.studies.peers``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.environment import REPOSITORY
from bench.rows import Row, RowFile

FOLDER = REPOSITORY / "reports" / "compare"
PAGE = REPOSITORY / "reports" / "compare.md"
OURS = "sparse_xmc"
_HEAD = (
    "system", "P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5", "train CPU s", "train s", "batch, texts/CPU s", "one text, ms",
    "on disk, MB", "peak, MB",
)  # fmt: skip
_RANKING = ("P@1", "P@3", "P@5", "PSP@1", "PSP@3", "PSP@5")


def stored() -> list[Row]:
    return RowFile(FOLDER).read()


def newest(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """The last row of each system by set."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(row["set"], {})[row["variant"]] = row
    return found


def _cells(row: Row) -> list[str]:
    if row["status"] != "ok":
        return [row["reason"], *[""] * (len(_HEAD) - 2)]
    return [
        *(f"{row[name]:.2f}" for name in _RANKING),
        f"{row['train_cpu_s']:,.1f}",
        f"{row['train_wall_s']:,.1f}",
        f"{row['batch_texts'] / row['batch_cpu_s']:,.0f}",
        f"{row['text_ms_p50']:.2f}",
        f"{row['disk_bytes'] / 1e6:,.1f}",
        f"{row['peak_bytes'] / 1e6:,.0f}",
    ]


def table(rows: dict[str, Row]) -> list[str]:
    """Markdown; the best figure of a ranking metric is bold."""
    best = {name: max((row[name] for row in rows.values() if row["status"] == "ok"), default=None) for name in _RANKING}
    lines = ["| " + " | ".join(_HEAD) + " |", "|---|" + "---:|" * (len(_HEAD) - 1)]
    for variant, row in rows.items():
        cells = _cells(row)
        if row["status"] == "ok":
            shown = zip(_RANKING, cells, strict=False)
            cells = [f"**{cell}**" if row[name] == best[name] else cell for name, cell in shown] + cells[
                len(_RANKING) :
            ]
        lines.append("| " + " | ".join([variant, *cells]) + " |")
    return lines


def losses(rows: dict[str, Row]) -> list[str]:
    """Where a peer is ahead of our default, in words."""
    own = rows.get(OURS)
    if own is None or own["status"] != "ok":
        return []
    said = []
    for variant, row in rows.items():
        if variant.startswith(OURS) or row["status"] != "ok":
            continue
        better = [f"{name} {row[name]:.2f} against {own[name]:.2f}" for name in _RANKING if row[name] > own[name]]
        if row["train_cpu_s"] < own["train_cpu_s"]:
            better.append(f"training {row['train_cpu_s']:,.1f} CPU seconds against {own['train_cpu_s']:,.1f}")
        if row["text_ms_p50"] < own["text_ms_p50"]:
            better.append(f"one text {row['text_ms_p50']:.2f} ms against {own['text_ms_p50']:.2f}")
        if row["batch_texts"] / row["batch_cpu_s"] > own["batch_texts"] / own["batch_cpu_s"]:
            better.append("prediction in batch")
        if row["disk_bytes"] < own["disk_bytes"]:
            better.append("disk")
        if row["peak_bytes"] < own["peak_bytes"]:
            better.append("peak memory")
        if better:
            said.append(f"- {variant}: {'; '.join(better)}.")
    return said


def _disturbed(rows: Sequence[Row]) -> list[str]:
    """Which runs had not the machine to themselves: their rows hold ``disturbed``."""
    names = [
        f"{variant} on {name}"
        for name, found in newest(rows).items()
        for variant, row in found.items()
        if row.get("disturbed")
    ]
    if not names:
        return ["The systems ran one after the other, on an otherwise idle machine."]
    said = f"{', '.join(names[:-1])} and {names[-1]}" if names[1:] else names[0]
    return [
        "The systems ran one after the other, on an otherwise idle machine, but for",
        f"{said}: seconds of those are upper bounds.",
    ]


def lines(rows: Sequence[Row]) -> list[str]:
    first = rows[-1]
    text = [
        "# Beside other extreme classifiers",
        "",
        "    python -m bench.studies.peers run --data DATA --peers PYTHON    # an environment with the peers; then this page",
        "",
        "One run each on the test splits, with the defaults of each system (fastText: the settings of its tutorial",
        "for several labels a text; `sparse_xmc, fast` and `best` are `--effort fast` and `--effort best`). Every",
        "system reads the same files in a process of its own. Training is all from its start to the saved model:",
        "imports, reading and vectorising are included. The peers read sublinear tf-idf of scikit-learn (at most",
        "200,000 words that two texts have; for PyPI-KnownItem 1,000,000 that one has), of Bibtex the normalised",
        "features.",
        "",
        f"{first['cpu']}, {first['cores']} cores, {first['threads']} threads. CPU seconds are those of all threads.",
        *_disturbed(rows),
        "Peak: resident memory of the process tree. PSP with A=0.55, B=1.5. Bold: the best of the column.",
        "",
    ]
    for name, found in newest(rows).items():
        text += [f"## {name}", "", *table(found), ""]
        behind = losses(found)
        if behind:
            text += ["Where a peer is ahead of our default:", "", *behind, ""]
    versions = sorted({row["version"] for row in rows if row.get("version") and not row["variant"].startswith(OURS)})
    commits = sorted({row["commit"][:8] for row in rows if row["variant"].startswith(OURS)})
    return [
        *text,
        f"Versions: {', '.join(versions)}; this project at {', '.join(commits)}. Rows: `compare/rows.jsonl`.",
        "",
    ]


def write_report(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Raises:
    ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there are no rows to report: python -m bench.studies.peers run")
    page.write_text("\n".join(lines(rows)))
