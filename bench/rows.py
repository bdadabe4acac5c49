"""Rows of results: an append-only JSON-lines file that survives interruption and is never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

STATUSES = ("ok", "oom", "unsupported", "error")
FILE_NAME = "rows.jsonl"

Row = dict[str, Any]


class RowFile:
    """The rows of one result folder. Every row is one line, written at once and flushed to disk."""

    def __init__(self, folder: Path, name: str = FILE_NAME) -> None:
        self.path = Path(folder) / name

    def append(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row, separators=(",", ":"), allow_nan=False) + "\n"
        with open(self.path, "ab+") as file:
            if self._torn(file):
                line = "\n" + line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def _torn(file: Any) -> bool:
        """Whether the file ends inside a line: the writer of that line was killed."""
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"

    def read(self) -> list[Row]:
        """All complete rows, in the order of writing; a torn line is skipped."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                rows.append(row)
        return rows


def job_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a result the same job: kind, provider and point (of a training run: data and head)."""
    return tuple(
        row.get(k) for k in ("data", "head", "kind", "provider", "mode", "L", "D", "K", "G", "B", "dtype", "device")
    )


def unfinished_run(rows: Iterable[Row], suite: str, commit: str) -> str | None:
    """The last run of ``suite`` at ``commit`` if it never reached its end, else None."""
    last = None
    ended = set()
    for row in rows:
        if row.get("kind") == "begin" and row.get("suite") == suite:
            last = row
        elif row.get("kind") == "end":
            ended.add(row["run"])
    if last is None or last["run"] in ended or last.get("commit") != commit:
        return None
    return str(last["run"])


def newest(rows: Iterable[Row]) -> list[Row]:
    """Of every job the newest row (the later one in the file), in the order of first appearance.

    The machine's limits are kept for every run: they count for the rows of their run alone.
    """
    chosen: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row.get("status") in STATUSES:
            run = row.get("run") if row.get("kind") == "roof" else None
            chosen[(*job_key(row), run)] = row
    return list(chosen.values())
