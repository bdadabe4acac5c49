"""This project beside other extreme classifiers: the same machine and files, from the text to the predictions.

    python -m bench.studies.peers run --data ../shared/data --peers ~/peers/bin/python   # what has no row yet; resumes
    python -m bench.studies.peers report                                                  # reports/compare.md from the rows

``--peers`` is a Python that has omikuji, libpecos, napkinxc, fasttext and scikit-learn: an environment of its own, since they
need older versions of NumPy and SciPy than this project's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.sparse as sp

from bench import environment
from bench.compare_report import FOLDER, stored, write_report
from bench.environment import REPOSITORY
from bench.rows import Row, RowFile
from sparse_xmc.metrics import Truth, ranking_metrics

PROCESS = Path(__file__).with_name("peer_process.py")
K = (1, 3, 5)

# where a set's files are, how a text is put together, and which terms count
SETS: dict[str, dict[str, Any]] = {
    "Bibtex": {"files": "txt.gz", "fields": None, "label_field": None},
    "EURLEX57K": {
        "files": "jsonl.gz", "fields": ["title", "header", "recitals", "main_body"], "label_field": "concepts"
    },
    "TIBKAT-EN": {"files": "jsonl.gz", "fields": ["text"], "label_field": "labels"},
    "PyPI-KnownItem": {
        "files": "jsonl.gz", "fields": ["text"], "label_field": "labels", "min_df": 1, "max_features": 1_000_000
    },
}  # fmt: skip
# what is compared: its name in rows and tables, the system, and options of ``sparse_xmc.train``
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sparse_xmc, fast": ("sparse_xmc", {"effort": "fast"}),
    "sparse_xmc": ("sparse_xmc", {}),
    "sparse_xmc, best": ("sparse_xmc", {"effort": "best"}),
    "omikuji": ("omikuji", {}),
    "PECOS XR-Linear": ("pecos", {}),
    "napkinXC PLT": ("napkinxc", {}),
    "scikit-learn one-vs-rest": ("sklearn_ovr", {}),
    "fastText one-vs-all": ("fasttext_ova", {}),
}


def job_of(name: str, variant: str, data: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``peer_process`` is told."""
    described = SETS[name]
    system, options = VARIANTS[variant]
    terms = {"min_df": described.get("min_df", 2), "max_features": described.get("max_features", 200_000)}
    if system == "sparse_xmc" and "min_df" in described:
        options = {**options, **terms, "fan_in": 32}
    files = {part: str(data / name / f"{part}.{described['files']}") for part in ("train", "test")}
    limits = {"cpu_limit": arguments.cpu_limit, "memory_bytes": int(arguments.memory_gb * 1e9)}
    fields = {"fields": described["fields"], "label_field": described["label_field"]}
    return {"system": system, "options": options, "threads": arguments.threads, **files, **fields, **terms, **limits}


def measured(command: list[str], timeout: float) -> tuple[subprocess.CompletedProcess[str], int]:
    """Runs a command; also the peak of the resident memory of its process tree in bytes, sampled."""
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak, done = [0], threading.Event()

    def watch() -> None:
        root = psutil.Process(process.pid)
        while not done.wait(0.05):
            try:
                peak[0] = max(peak[0], sum(p.memory_info().rss for p in (root, *root.children(recursive=True))))
            except psutil.Error:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        err = f"took longer than {timeout:g} s"
    finally:
        done.set()
        watcher.join()
    return subprocess.CompletedProcess(command, process.returncode, out, err), peak[0]


def run_one(name: str, variant: str, arguments: argparse.Namespace) -> Row:
    """The row of one system on one set."""
    python = sys.executable if VARIANTS[variant][0] == "sparse_xmc" else arguments.peers
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        folder.mkdir()
        job = job_of(name, variant, arguments.data, arguments) | {"folder": str(folder), "scratch": scratch}
        job["started"] = time.time()
        done, peak = measured([python, str(PROCESS), json.dumps(job)], arguments.timeout)
        row: Row = {"name": f"{name}: {variant}", "set": name, "variant": variant, "threads": arguments.threads}
        if done.returncode:
            return row | {"status": "error", "reason": done.stderr.strip().splitlines()[-1][-300:]}
        row |= json.loads(done.stdout.splitlines()[-1])
        if row["status"] == "ok":
            found = json.loads(Path(scratch, "predicted.json").read_text())
            row |= {"peak_bytes": peak, **scores(found["predicted"], found["true"], *training_labels(job))}
    return row


def training_labels(job: dict[str, Any]) -> tuple[dict[str, int], int]:
    """Training rows of each label, and rows in all."""
    from bench.studies.peer_process import read_features, read_texts

    if job["fields"] is None:
        _, rows = read_features(job["train"])
    else:
        _, rows = read_texts(job["train"], job["fields"], job["label_field"])
    counts: dict[str, int] = {}
    for row in rows:
        for label in set(row):
            counts[label] = counts.get(label, 0) + 1
    return counts, len(rows)


def scores(predicted: list[list[str]], true: list[list[str]], counts: dict[str, int], rows: int) -> dict[str, float]:
    """P@k and PSP@k of the labels named; a true label without a training row can't be hit and counts."""
    place = {name: i for i, name in enumerate(counts)}
    known = [[place[label] for label in set(row) if label in place] for row in true]
    offsets = np.cumsum([0, *map(len, known)])
    columns = [label for row in known for label in row]
    targets = sp.csr_matrix((np.ones(len(columns)), columns, offsets), shape=(len(true), len(place)))
    width = max(K)
    top = np.array([[place.get(label, -1) for label in [*row, *[""] * width][:width]] for row in predicted])
    frequencies = np.array(list(counts.values()))
    truth = Truth.from_training(targets, np.array([len(set(row)) for row in true]), frequencies, rows)
    found = ranking_metrics(top, truth, ks=K)
    return {name: round(found[name], 2) for name in (f"{kind}@{k}" for kind in ("P", "PSP") for k in K)}


def planned(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    for name in arguments.only or SETS:
        for variant in VARIANTS:
            if not arguments.match or any(word in variant for word in arguments.match):
                yield name, variant


def run(arguments: argparse.Namespace) -> None:
    file = RowFile(FOLDER)
    done = {row["name"] for row in file.read() if row["status"] != "error"}
    described = environment.describe("cpu")
    for name, variant in planned(arguments):
        if f"{name}: {variant}" in done:
            continue
        row = run_one(name, variant, arguments)
        print(json.dumps(row), flush=True)
        file.append(row | described)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("run", "report"))
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data", help="folder of the sets")
    parser.add_argument("--peers", default=sys.executable, help="a Python that has the peers (default: this one)")
    parser.add_argument("--only", nargs="+", choices=SETS, help="sets (default: all)")
    parser.add_argument("--match", nargs="+", help="systems whose name holds one of these (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="of every system (default: 2)")
    parser.add_argument("--cpu-limit", type=float, default=1200.0, help="CPU seconds beyond which a run is not begun")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="what weights may take (default: 8)")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds that a run may take (default: 1800)")
    arguments = parser.parse_args()
    if arguments.verb == "run":
        run(arguments)
    write_report(stored())
    return 0


if __name__ == "__main__":
    sys.exit(main())
