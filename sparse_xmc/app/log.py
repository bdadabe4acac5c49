"""The log of a run: one JSON object a line, cut back to the checkpoint on resume; curves drawn from it."""

from __future__ import annotations

import json
import os
from typing import Any

from sparse_xmc.storage.atomic import complete_file, flush
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.regular import to_json


class RunLog:
    """``metrics.jsonl``: every entry has ``step`` and ``kind`` ("train" or "valid").

    Args:
        path: the file; entries after ``last_step`` (of a run that was killed) and a broken last line are removed.
        last_step: step of the checkpoint that the run goes on from, 0 for a new run.

    Raises:
        ArtefactError: a line of the file is no entry.
    """

    def __init__(self, path: str | os.PathLike[str], *, last_step: int = 0) -> None:
        self.path = os.fspath(path)
        kept = [entry for entry in read_log(self.path) if entry["step"] <= last_step]
        with complete_file(self.path) as file:
            file.writelines(json.dumps(entry) + "\n" for entry in kept)

    def write(self, kind: str, step: int, **values: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(to_json({"kind": kind, "step": step, **values}, self.path) + "\n")

    def flush(self) -> None:
        """Has all entries on disk."""
        flush(self.path)


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Entries of a log up to the first line that is cut off; none where there is no file.

    Raises:
        ArtefactError: a line is something else than an entry.
    """
    entries: list[dict[str, Any]] = []
    if os.path.exists(path):
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    break
                except (UnicodeDecodeError, RecursionError):
                    entry = None
                if not isinstance(entry, dict) or not isinstance(entry.get("step"), int) or "kind" not in entry:
                    raise ArtefactError(f"{os.fspath(path)}:{number}: no entry of a log: remove the line")
                entries.append(entry)
    return entries


def _numbers(entry: dict[str, Any], *names: str) -> bool:
    """Whether an entry holds these figures, as an intact one does."""
    return all(isinstance(entry.get(name), (int, float)) for name in names)


def draw_curves(log_path: str | os.PathLike[str], image_path: str | os.PathLike[str]) -> None:
    """Loss and, where there are validations, P@k over optimizer steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_log(log_path)
    shown = ("P@1", "P@3", "P@5")
    train = [entry for entry in entries if entry["kind"] == "train" and _numbers(entry, "loss")]
    valid = [entry for entry in entries if entry["kind"] == "valid" and _numbers(entry, *shown)]
    figure = Figure(figsize=(10, 4) if valid else (5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2 if valid else 1, squeeze=False)[0]
    axes[0].plot([e["step"] for e in train], [e["loss"] for e in train])
    axes[0].set(xlabel="optimizer step", ylabel="training loss (sum over labels)", yscale="log")
    if valid:
        for name in shown:
            axes[1].plot([e["step"] for e in valid], [e[name] for e in valid], marker="o", label=name)
        axes[1].set(xlabel="optimizer step", ylabel="validation, %")
        axes[1].legend()
    figure.savefig(image_path, dpi=120)
