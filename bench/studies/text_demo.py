"""The package's own training with its defaults, from files on: real data, the command that a user would give, what came out."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import sparse_xmc
from bench import environment
from bench.rows import RowFile
from bench.studies import training_data


def options(name: str, folder: Path) -> dict[str, Any]:
    """Files of a data set as ``sparse_xmc.train`` takes them; docstrings are written to ``folder``."""
    data = training_data.data_folder() / name
    if name == "Bibtex":
        return {part: str(data / f"{part}.txt.gz") for part in ("train", "test")}
    if name == "EURLEX57K":
        fields = {"text_field": ["title", "header", "recitals", "main_body"], "label_field": "concepts"}
        return {part: str(data / f"{part}.jsonl.gz") for part in ("train", "test")} | fields
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, (texts, labels) in zip(("train", "test"), training_data.docstrings(), strict=True):
        files[part] = str(folder / f"{part}.jsonl")
        with open(files[part], "w", encoding="utf-8") as file:
            for row, text in enumerate(texts):
                file.write(json.dumps({"text": text, "labels": labels.row(row)}) + "\n")
    return files


def run(name: str | None, out: Path) -> dict[str, Any]:
    """Trains on a data set and prints what it reached; appends a row. The run stands in ``out``."""
    name = training_data.choose(name)
    given = options(name, out / name)
    shown = " ".join(
        f"--{key.replace('_', '-')} {','.join(v) if isinstance(v, list) else v}" for key, v in given.items()
    )
    place = out / "runs" / name
    print(f"\nsparse-xmc train {shown} --out {place}\n", flush=True)
    wall, cpu = time.perf_counter(), time.process_time()
    metrics = sparse_xmc.train(**given, out=str(place), overwrite=True, progress=False)
    row = {
        **{metric: metrics[metric] for metric in ("P@1", "P@3", "P@5")},
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "run_bytes": sum(os.path.getsize(Path(folder, file)) for folder, _, files in os.walk(place) for file in files),
    }
    described = environment.describe("cpu")
    RowFile(out).append({"kind": "training", "data": name, "head": "train", **row, "status": "ok", **described})
    scores = " / ".join(f"{row[metric]:.2f}" for metric in ("P@1", "P@3", "P@5"))
    print(
        f"\n{name}: P@1 / P@3 / P@5 {scores} in {row['seconds']:.1f} s ({row['cpu_seconds']:.1f} CPU seconds), run folder "
        f"{row['run_bytes'] / 1e6:.1f} MB: sparse-xmc predict {place} --input TEXTS"
    )
    return row
