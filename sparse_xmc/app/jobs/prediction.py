"""The best labels of texts or features, written to a file."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

from sparse_xmc.app.loading import check_ranking, load_bundle
from sparse_xmc.app.splits import open_data
from sparse_xmc.storage.atomic import check_place, complete_file

Report = Callable[[str], None]
Writer = Callable[[int, list[tuple[Any, float]]], None]


def predict(
    run: str,
    source: str,
    out: str = "-",
    *,
    k: int = 5,
    threshold: float | None = None,
    form: str = "jsonl",
    options: dict[str, Any] | None = None,
    report: Report | None = None,
) -> int:
    """Writes the ``k`` best labels of each row with their probabilities; returns the number of rows.

    ``form`` "jsonl": ``{"labels": [...], "scores": [...]}`` a row, labels as the training data wrote them; "csv": a line
    ``row,label,score`` for each label, rows counted from 0. Labels less probable than ``threshold`` are left out. A file
    appears when it is complete; "-" is standard output.

    Raises:
        DataError, CheckpointError, ValueError: with one message that says what is wrong where.
    """
    check_ranking(k, threshold)
    if form not in _WRITERS:
        raise ValueError(f"form must be one of {', '.join(_WRITERS)}, got {form!r}")
    if os.path.isfile(out) and os.path.isfile(source) and os.path.samefile(source, out):
        raise ValueError(f"out and input are the same file ({out}): choose another --out")
    if out != "-":
        check_place(out, folder=False)
    bundle = load_bundle(run, options)
    texts = bundle.preparation.reads_texts
    split = open_data(bundle.config, source, None, texts=texts, need_labels=False)
    inputs, _ = bundle.preparation.transform(split)
    (report or _said)(split.summary())
    count, names, least = 0, bundle.vocabulary.names, -1.0 if threshold is None else threshold
    with contextlib.nullcontext(sys.stdout) if out == "-" else complete_file(out) as file:
        write = _WRITERS[form](file)
        for scores, labels in bundle.predict(inputs, k, progress=bundle.config.progress):
            values = bundle.probabilities(scores)
            for row, value in zip(labels.tolist(), values.tolist(), strict=True):
                write(count, [(names[i], round(v, 6)) for i, v in zip(row, value, strict=True) if v >= least])
                count += 1
    (report or _said)(f"{count:,} rows written to {'standard output' if out == '-' else out}")
    return count


def _said(text: str) -> None:
    """Reports beside the predictions, which may be what standard output is for."""
    print(text, file=sys.stderr)


def _json_lines(file: TextIO) -> Writer:
    def write(row: int, found: list[tuple[Any, float]]) -> None:
        entry = {"labels": [label for label, _ in found], "scores": [score for _, score in found]}
        file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    return write


def _csv(file: TextIO) -> Writer:
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(["row", "label", "score"])

    def write(row: int, found: list[tuple[Any, float]]) -> None:
        lines.writerows([row, label, score] for label, score in found)

    return write


_WRITERS: dict[str, Callable[[TextIO], Writer]] = {"jsonl": _json_lines, "csv": _csv}
