"""New labels in a trained model: ``train --from`` against training anew, in accuracy and in CPU seconds.

    python -m bench.studies.new_labels run [--data NAME] [--share 0.1] [--split dev] [-- options of train]
    python -m bench.studies.new_labels report

A share of the labels, drawn with a seed, is taken out of the training rows, and a model is trained without them. Then
the same command begins from that model with all rows, with only the rows that have a new label, and from nothing.
Every command runs in a process of its own, on one thread, without evaluation; kernels are compiled before.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.environment import REPOSITORY
from bench.rows import Row, RowFile
from bench.studies.training_data import data_folder

ROWS = RowFile(REPOSITORY / "reports", "new_labels.jsonl")
REPORT = REPOSITORY / "reports" / "new_labels.md"
TRAIN, EVALUATE, PREDICT = ("train", "evaluate", "predict")


class Set(NamedTuple):
    """A data set: name ending, options of ``train`` and how a line's labels are read and written."""

    ending: str
    options: tuple[str, ...]
    labels: Callable[[str], list[str]]
    without: Callable[[str, set[str]], str]


def _json(field: str) -> tuple[Callable[[str], list[str]], Callable[[str, set[str]], str]]:
    def labels(line: str) -> list[str]:
        return [str(label) for label in json.loads(line)[field]]

    def without(line: str, gone: set[str]) -> str:
        record = json.loads(line)
        record[field] = [label for label in record[field] if str(label) not in gone]
        return json.dumps(record) + "\n" if record[field] else ""

    return labels, without


def _text() -> tuple[Callable[[str], list[str]], Callable[[str, set[str]], str]]:
    def labels(line: str) -> list[str]:
        first = line.split(" ", 1)[0]
        return [label for label in first.split(",") if label] if ":" not in first else []

    def without(line: str, gone: set[str]) -> str:
        kept = [label for label in labels(line) if label not in gone]
        return f"{','.join(kept)} {line.split(' ', 1)[1]}" if kept else ""

    return labels, without


SETS = {
    "EURLEX57K": Set(
        ".jsonl.gz",
        ("--text-field", "title,header,recitals,main_body", "--label-field", "concepts"),
        *_json("concepts"),
    ),
    "TIBKAT-EN": Set(".jsonl.gz", ("--text-field", "text", "--label-field", "labels"), *_json("labels")),
    "Bibtex": Set(".txt.gz", (), *_text()),
}


def lines(path: Path) -> Iterator[str]:
    """Lines of a gzip-compressed split, a header of counts left out."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number or not line.replace(" ", "").strip().isdigit():
                yield line


def split_files(data: Set, train: Path, share: float, seed: int, folder: Path) -> tuple[set[str], int]:
    """Writes ``base`` (all rows without the new labels) and ``only`` (rows with a new label, whole); returns the new labels
    and the number of rows that have one."""
    every = sorted({label for line in lines(train) for label in data.labels(line)})
    new = set(np.random.default_rng(seed).permutation(every)[: round(share * len(every))].tolist())
    ending, count = data.ending.removesuffix(".gz"), 0
    with open(folder / f"base{ending}", "w", encoding="utf-8") as base, open(folder / f"only{ending}", "w") as only:
        for line in lines(train):
            base.write(data.without(line, new))
            if not new.isdisjoint(data.labels(line)):
                only.write(line)
                count += 1
    return new, count


def command(*arguments: str) -> dict[str, float]:
    """Runs a command of ``sparse-xmc``; its CPU seconds (user and system) and wall seconds."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    whole = [sys.executable, "-m", "sparse_xmc", *arguments, "--no-progress", "--threads", "1"]
    subprocess.run(whole, env=environment, check=True, stdout=sys.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": round(cpu, 1), "wall_s": round(time.monotonic() - began, 1)}


def judge(data: Set, run: Path, test: Path, new: set[str]) -> dict[str, float]:
    """P@1, 3, 5 of a run on a split, and the share of the occurrences of new labels among the five best."""
    out = run.with_suffix(".predictions.jsonl")
    command(PREDICT, str(run), "--input", str(test), "--out", str(out))
    hits, found, there, count = np.zeros(5), 0, 0, 0
    for line, prediction in zip(lines(test), out.read_text(encoding="utf-8").splitlines(), strict=True):
        true, best = set(data.labels(line)), [str(label) for label in json.loads(prediction)["labels"]]
        hits += np.cumsum([label in true for label in best] + [False] * (5 - len(best)))
        found, there, count = found + len(true & new & set(best)), there + len(true & new), count + 1
    precision = {f"P@{k}": round(100 * float(hits[k - 1]) / k / count, 2) for k in (1, 3, 5)}
    return {**precision, "R@5 of new labels": round(100 * found / max(there, 1), 2)}


def run(name: str, share: float, split: str, seed: int, options: list[str]) -> None:
    """Trains the four models and writes a row for each."""
    data, source = SETS[name], data_folder() / name
    train, test = source / f"train{data.ending}", source / f"{split}{data.ending}"
    with tempfile.TemporaryDirectory() as temporary:
        folder, ending = Path(temporary), data.ending.removesuffix(".gz")
        new, count = split_files(data, train, share, seed, folder)
        about = {"data": name, "split": split, "seed": seed, "new labels": len(new), "options": " ".join(options)}
        base = str(folder / "base")
        later = [option for i, option in enumerate(options) if not _of_model(options, i)]
        whole = (*data.options, *options)
        jobs = {
            "without the new labels": (f"{folder}/base{ending}", "base", whole),
            "from it, all rows": (str(train), "grown", ("--from", base, *later)),
            f"from it, the {count:,} rows with a new label": (
                f"{folder}/only{ending}",
                "only",
                ("--from", base, *later),
            ),
            "anew, all rows": (str(train), "anew", whole),
        }
        for kind, (rows, out, more) in jobs.items():
            spent = command(TRAIN, "--train", rows, "--out", str(folder / out), *more)
            row = {**about, "run": kind, **spent, **judge(data, folder / out, test, new)}
            print(row, flush=True)
            ROWS.append(row)


def _of_model(options: list[str], i: int) -> bool:
    """Whether an option, or the value behind one, is the model's."""
    return options[i] == "--solver" or (i > 0 and options[i - 1] == "--solver")


def report(rows: list[Row]) -> str:
    """The report's text from stored rows."""
    text = [
        "# New labels in a trained model",
        "",
        "A tenth of the labels, drawn at random, is missing in a first training; then the model learns them. `--from` keeps",
        "the other labels as they are; `anew` trains on all rows from nothing, with the search for settings that a first",
        "training has. CPU seconds of the whole command on one thread, reading and vectorising included, kernels compiled.",
        "`R@5 of new labels`: share of their occurrences in the split that are among a row's five best labels.",
        "",
    ]
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row["data"], row["split"], row["options"]), []).append(row)
    for (data, split, options), group in kinds.items():
        anew = next(row for row in group if row["run"].startswith("anew"))
        text += [
            f"## {data}, {split} split{f', `{options}`' if options else ''}: {group[0]['new labels']:,} new labels",
            "",
            "| training | CPU s | of anew | P@1 | P@3 | P@5 | R@5 of new labels |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for row in group:
            share = f"{100 * row['cpu_s'] / anew['cpu_s']:.0f} %"
            values = " | ".join(f"{row[name]:.2f}" for name in ("P@1", "P@3", "P@5", "R@5 of new labels"))
            text.append(f"| {row['run']} | {row['cpu_s']:.1f} | {share} | {values} |")
        text.append("")
    return "\n".join([*text, "Rows: [new_labels.jsonl](new_labels.jsonl)", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--data", choices=sorted(SETS), default="EURLEX57K")
    parser.add_argument("--share", type=float, default=0.1, help="of the labels that are new (default: 0.1)")
    parser.add_argument("--split", default="dev", help="split that is judged on (default: dev)")
    parser.add_argument("--seed", type=int, default=0)
    arguments, options = parser.parse_known_args()
    if arguments.what == "run":
        run(arguments.data, arguments.share, arguments.split, arguments.seed, [o for o in options if o != "--"])
    REPORT.write_text(report(ROWS.read()), encoding="utf-8")


if __name__ == "__main__":
    main()
