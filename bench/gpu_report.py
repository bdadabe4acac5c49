"""Turns a folder of ``bench/gpu_suite.sh`` into ``reports/gpu/<name>/``: rows, figures, tables, logs and a summary."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from bench.environment import REPOSITORY
from bench.plotting import plot_folder
from bench.predictions import PREDICTIONS
from bench.report import write_table
from bench.rows import FILE_NAME, Row, RowFile, job_key, newest

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


def _host(rows: list[Row]) -> list[str]:
    """Host time beside the device's: above 100 % Python is the limit of an uncaptured call."""
    timed = [
        r for r in newest(rows) if r.get("kind") == "time" and r["status"] == "ok" and r.get("host_ms") is not None
    ]
    if not timed:
        return []
    out = [
        "## Host and device",
        "",
        "| mode | provider | L | K | G | B | dtype | device ms | clock | host ms | host share |",
    ]
    out.append("|---|---|" + "---:|" * 4 + "---|---:|---|---:|---:|")
    for r in timed:
        sizes = " | ".join(f"{r[c]:,}" for c in ("L", "K", "G", "B"))
        times = f"{r['p50_ms']:.3f} | {r['clock']} | {r['host_ms']:.3f} | {100 * r['host_ms'] / r['p50_ms']:.0f} %"
        out.append(f"| {r['mode']} | {r['provider']} | {sizes} | {r['dtype']} | {times} |")
    return [*out, ""]


def _atomics(rows: list[Row]) -> list[str]:
    measured = [r for r in rows if r.get("kind") == "atomics" and r["status"] == "ok"]
    if not measured:
        return []
    out = ["## Additions and gathers in L2", "", "| D | B | T additions/s | gathered TB/s |", "|---:|---:|---:|---:|"]
    for r in measured:
        out.append(
            f"| {r['D']:,} | {r['B']} | {r['additions_per_s'] / 1e12:.2f} | {r['gathered_bytes_per_s'] / 1e12:.2f} |"
        )
    return [*out, ""]


def _two_ranks(rows: list[Row]) -> list[str]:
    checks = {r["check"]: r for r in rows if r.get("kind") == "two_ranks"}
    if not checks:
        return []
    ranks = next(iter(checks.values()))["ranks"]
    out = [f"## A head over the GPUs of {ranks} ranks, and the whole head on one", "", "| check | found |", "|---|---|"]
    for name, r in checks.items():
        times = f"{r['p50_ms']:.2f} ms, alone {r['alone_ms']:.2f} ms (L={r['L']:,})" if "p50_ms" in r else "same"
        out.append(f"| {name} | {times if r['status'] == 'ok' else r['reason']} |")
    return [*out, ""]


def _predictions(rows: list[Row]) -> list[str]:
    """Measured times beside what was predicted before anything had run on a GPU."""
    timed = {job_key(r): r for r in newest(rows) if r.get("kind") == "time" and r["status"] == "ok"}
    found = [(p, timed[key]) for p in PREDICTIONS for key in timed if p.is_of(timed[key])]
    if not found:
        return []
    out = [
        "## Predicted and measured",
        "",
        "Predictions are for an H100, from counted instructions, bytes and atomics.",
        "",
    ]
    out += [
        "| mode | provider | L | K | G | predicted ms | measured ms | limit named |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for p, r in found:
        sizes = f"{p.L:,} | {p.K} | {r['G']}"
        out.append(f"| {p.mode} | {p.provider} | {sizes} | {p.low:g} to {p.high:g} | {r['p50_ms']:.3f} | {p.limit} |")
    return [*out, ""]


def make(source: Path, reports: Path = REPOSITORY / "reports") -> Path:
    """Writes the report; returns its folder.

    Raises:
        ValueError: the folder holds no rows, or rows of several GPUs.
    """
    rows = RowFile(source).read()
    if not rows:
        raise ValueError(f"no rows in {source}")
    target = reports / "gpu" / name_of(rows)
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
        *_predictions(rows),
        *_host(rows),
        *_atomics(rows),
        *_end_to_end(rows),
        *_two_ranks(rows),
        *_tuning(rows),
    ]
    (target / "README.md").write_text("\n".join(text))
    return target
