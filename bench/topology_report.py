"""The report of ``bench.topology_study``: reads rows, measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_report(rows: list[dict[str, Any]], folder: Path) -> None:
    pass
