"""The scikit-learn estimator on a million rows and a hundred thousand labels, beside one-vs-rest on the size that it can do.

    python -m bench.studies.estimator run [--rows N] [--labels L]
    python -m bench.studies.estimator report

Synthetic and sparse: every label has six features of its own, each row has two labels, four of the features of each and
two more. Each fit runs in a process of its own, on one thread; memory is the most that the process held at any time, the
data included, beside what it held before the fit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import scipy.sparse as sp

from bench.environment import REPOSITORY
from bench.rows import Row, RowFile
from bench.studies.softmax_memory import held

ROWS = RowFile(REPOSITORY / "reports", "estimator.jsonl")
REPORT = REPOSITORY / "reports" / "estimator.md"
TEST_ROWS, OWN, SHOWN, NOISE = 5000, 6, 4, 2
SMALL = (20_000, 500)  # rows and labels that one-vs-rest is given
OURS: dict[str, Any] = {"fan_in": 16, "epochs": 1, "batch_size": 1024}


def synthetic(rows: int, labels: int, features: int, seed: int) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Features ``[rows, features]`` of unit length and labels ``[rows, labels]``, two a row."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, labels, (rows, 2))
    own = np.random.default_rng(0).integers(0, features, (labels, OWN), dtype=np.int32)
    order = rng.random((rows, 2, OWN)).argpartition(SHOWN, axis=2)[..., :SHOWN]
    shown = np.take_along_axis(own[true], order, axis=2).reshape(rows, -1)
    columns = np.hstack([shown, rng.integers(0, features, (rows, NOISE), dtype=np.int32)])
    width = columns.shape[1]
    values = np.full(columns.size, width**-0.5, dtype=np.float32)
    x = sp.csr_matrix((values, columns.ravel(), np.arange(rows + 1) * width), (rows, features))
    x.sum_duplicates()
    y = sp.csr_matrix((np.ones(2 * rows, np.float32), true.ravel(), np.arange(rows + 1) * 2), (rows, labels))
    y.sum_duplicates()
    y.data[:] = 1
    return x, y


def fitted(name: str, x: sp.csr_matrix, y: sp.csr_matrix) -> Any:
    """A function from rows to their best labels ``[N]``."""
    if name == "SparseXMCClassifier":
        from sparse_xmc.sklearn import SparseXMCClassifier

        model = SparseXMCClassifier(random_state=0, **OURS).fit(x, y)
        return lambda rows: model.predict_topk(rows, k=1)[0][:, 0]
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.svm import LinearSVC

    rest = OneVsRestClassifier(LinearSVC()).fit(x, y)
    return lambda rows: rest.decision_function(rows).argmax(axis=1)


def measure(name: str, rows: int, labels: int) -> dict[str, Any]:
    """One fit in this process."""
    features = max(labels, 1000)
    x, y = synthetic(rows, labels, features, 1)
    test_x, test_y = synthetic(TEST_ROWS, labels, features, 2)
    fitted(name, *synthetic(500, 20, 200, 3))  # imports, compiled kernels
    before, began, spent = held("VmRSS"), time.monotonic(), time.process_time()
    best = fitted(name, x, y)
    seconds, cpu, peak = time.monotonic() - began, time.process_time() - spent, held("VmHWM")
    hits = np.asarray(test_y[np.arange(TEST_ROWS), best(test_x)]).ravel()
    return {
        "name": name,
        "rows": rows,
        "labels": labels,
        "features": features,
        "nonzeros": int(x.nnz),
        "cpu_s": round(cpu, 1),
        "wall_s": round(seconds, 1),
        "data_mib": round(before / 2**20),
        "peak_mib": round(peak / 2**20),
        "P@1": round(100 * float(hits.mean()), 2),
    }


def report(rows: list[Row]) -> str:
    """The report's text from stored rows."""
    text = [
        "# The scikit-learn estimator on many labels",
        "",
        f"`SparseXMCClassifier({', '.join(f'{k}={v}' for k, v in OURS.items())})` and scikit-learn's",
        "`OneVsRestClassifier(LinearSVC())` on synthetic sparse rows (`python -m bench.studies.estimator run`): two labels a",
        "row, four of six features of each and two others. One thread, one fit a process; memory is the most that the process",
        "held, and what it held before the fit (interpreter, libraries, data). P@1 on 5,000 other rows.",
        "",
        "| estimator | rows | labels | nonzeros | CPU s | before fit, MiB | peak, MiB | P@1 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        numbers = " | ".join(f"{row[name]:,}" for name in ("rows", "labels", "nonzeros"))
        memory = f"{row['data_mib']:,} | {row['peak_mib']:,}"
        text.append(f"| {row['name']} | {numbers} | {row['cpu_s']:.1f} | {memory} | {row['P@1']:.2f} |")
    rest = next((row for row in rows if row["name"] != "SparseXMCClassifier"), None)
    large = max(rows, key=lambda row: row["labels"], default=None)
    if rest is not None and large is not None:
        each = rest["cpu_s"] / rest["labels"] / rest["rows"]
        hours = each * large["labels"] * large["rows"] / 3600
        text += [
            "",
            f"One-vs-rest fits {rest['labels']} machines on all {rest['rows']:,} rows each. At the same time for a label and",
            f"a row, {large['labels']:,} labels on {large['rows']:,} rows would take it about {hours:,.0f} hours:",
            "a prediction, nobody ran it.",
        ]
    return "\n".join([*text, "", "Rows: [estimator.jsonl](estimator.jsonl)", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report", "measure"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--name", default="SparseXMCClassifier")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        print(json.dumps(measure(arguments.name, arguments.rows, arguments.labels)))
        return
    if arguments.what == "run":
        large = ("SparseXMCClassifier", arguments.rows, arguments.labels)
        for name, rows, labels in (large, ("SparseXMCClassifier", *SMALL), ("OneVsRestClassifier(LinearSVC)", *SMALL)):
            command = [sys.executable, "-m", "bench.studies.estimator", "measure", "--name", name]
            threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
            done = subprocess.run(
                [*command, "--rows", str(rows), "--labels", str(labels)],
                env={**os.environ, **threads},
                stdout=subprocess.PIPE,
                check=True,
            )
            row = json.loads(done.stdout.decode().splitlines()[-1])
            print(row, flush=True)
            ROWS.append(row)
    REPORT.write_text(report(ROWS.read()), encoding="utf-8")


if __name__ == "__main__":
    main()
