"""The command line that the training studies share: trains the runs whose rows are missing, or writes the report."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from bench.rows import Row, RowFile


class NamedRun(Protocol):
    @property
    def name(self) -> str: ...


def printed(
    table: Callable[[list[Row]], list[str]], draw: Callable[[list[Row], str], Any], figure: Path
) -> Callable[[list[Row], list[str]], None]:
    """A ``report`` that prints a table and draws a figure."""

    def report(rows: list[Row], missing: list[str]) -> None:
        print("\n".join(table(rows)))
        if missing:
            print(f"\nnot measured: {len(missing)} runs, the first is {missing[0]}")
        draw(rows, str(figure))

    return report


def main(
    description: str | None,
    file: RowFile,
    runs: Iterable[Any],
    load: Callable[[], Any],
    train: Callable[[Any, Any], dict[str, Any]],
    report: Callable[[list[Row], list[str]], None],
) -> None:
    """``train(load(), run)`` gives the row of a run; ``report`` gets the rows and the names of runs without one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only runs whose name contains this")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after this long")
    parser.add_argument("--report", action="store_true", help="write the report, measure nothing")
    arguments = parser.parse_args()
    rows = file.read()
    done = {row["name"] for row in rows}
    missing: list[NamedRun] = [run for run in runs if run.name not in done]
    if arguments.report:
        report(rows, [run.name for run in missing])
        return
    began, data = time.monotonic(), load()
    for run in missing:
        if arguments.match not in run.name:
            continue
        if time.monotonic() - began > arguments.seconds:
            break
        row = {"name": run.name, **train(data, run)}
        print(row, flush=True)
        file.append(row)
