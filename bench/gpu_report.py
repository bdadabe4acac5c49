"""Turns a folder of ``bench/gpu_suite.sh`` into ``reports/<gpu>/``: rows, figures, tables, logs and a summary."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from bench.environment import REPOSITORY
from bench.plotting import plot_folder
from bench.report import write_table
from bench.rows import FILE_NAME, Row, RowFile

_KEPT = ("environment.json", "profile.txt", "tuning.json")
_OUTCOME = re.compile(r"\d+ (?:passed|failed|error|skipped).*")


def name_of(rows: list[Row]) -> str:
    """Folder name of the machine that the rows come from."""
    gpus = {str(row["gpu"]) for row in rows if row.get("gpu")}
    if len(gpus) > 1:
        raise ValueError(f"the rows come from several GPUs: {', '.join(sorted(gpus))}")
    if not gpus:
        return "cpu-smoke"
    return re.sub(r"[^a-z0-9]+", "-", gpus.pop().lower()).strip("-")


def _tests(folder: Path) -> str:
    log = folder / "tests.log"
    outcomes = [line for line in log.read_text().splitlines() if _OUTCOME.search(line)] if log.exists() else []
    return outcomes[-1].strip("= ") if outcomes else "no result"


def _parts(folder: Path) -> list[str]:
    out = ["| part | exit code |", "|---|---:|"]
    for part in sorted((folder / "done").glob("*"), key=lambda p: p.stat().st_mtime):
        out.append(f"| {part.name} | {part.read_text().strip()} |")
    return out


def _tuning(rows: list[Row]) -> list[str]:
    tuned = [r for r in rows if r.get("kind") == "tune" and r["status"] == "ok"]
    if not tuned:
        return []
    out = ["## Tuning", "", "| mode | L | K | G | B | dtype | first ms | tuned ms | gain |", "|---|" + "---:|" * 8]
    for r in tuned:
        point = " | ".join(str(r[c]) for c in ("mode", "L", "K", "G", "B", "dtype"))
        out.append(f"| {point} | {r['first_ms']:.3f} | {r['tuned_ms']:.3f} | {r['gain']:.2f}x |")
    return [*out, ""]


def _end_to_end(rows: list[Row]) -> list[str]:
    steps = {r["provider"]: r for r in rows if r.get("kind") == "end_to_end"}
    if not steps:
        return []
    out = ["## Encoder and head, one training step", "", "| head | L | K | B | ms | peak MiB |", "|---|" + "---:|" * 5]
    for r in steps.values():
        figures = f"{r['p50_ms']:.2f} | {r['peak_bytes'] / 2**20:,.0f}" if r["status"] == "ok" else f"{r['reason']} |"
        out.append(f"| {r['provider']} | {r['L']:,} | {r['K']} | {r['B']} | {figures} |")
    return [*out, ""]


def make(source: Path, reports: Path = REPOSITORY / "reports") -> Path:
    """Writes the report; returns its folder.

    Raises:
        ValueError: the folder holds no rows, or rows of several GPUs.
    """
    rows = RowFile(source).read()
    if not rows:
        raise ValueError(f"no rows in {source}")
    target = reports / name_of(rows)
    target.mkdir(parents=True, exist_ok=True)
    for file in (FILE_NAME, *_KEPT):
        if (source / file).exists():
            shutil.copy(source / file, target / file)
    environment: dict[str, Any] = {}
    if (source / "environment.json").exists():
        environment = json.loads((source / "environment.json").read_text())
    figures = plot_folder(target)
    write_table(target)
    where = environment.get("gpu") or f"{environment.get('cpu')}, smoke mode: no GPU figure is in this report"
    text = [
        f"# {where}",
        "",
        f"Commit `{environment.get('commit')}`, torch {environment.get('torch')}, Triton {environment.get('triton')}, "
        f"driver {environment.get('driver')}. Made by `bench/gpu_suite.sh` and `python -m bench gpu_report`.",
        "",
        f"Tests: {_tests(source)}",
        "",
        *_parts(source),
        "",
        "Tables: [table.md](table.md); rows: [rows.jsonl](rows.jsonl).",
        "",
        *[f"![{path.stem}](figures/{path.name})" for path in figures],
        "",
        *_end_to_end(rows),
        *_tuning(rows),
    ]
    (target / "README.md").write_text("\n".join(text))
    return target
