"""The direct solver on every set: the test splits once, and what each part is worth on rows held out from training.

    python -m bench.studies.direct test --data ../shared/data          # `train` at each effort and seed, by the command line
    python -m bench.studies.direct dev --data ../shared/data           # parts left out, the trade-off of the tail
    python -m bench.studies.direct report                              # the part of reports/accuracy.md between its marks

Nothing reads a test split but the first verb, which runs a variant of a set only if this version of the solver has no row
of it yet: its row is the one look. ``dev`` takes the training file alone and holds 3,000 rows (at most a fifth) of it back.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp

from bench import environment
from bench.rows import Row, RowFile
from bench.studies.accuracy import FILES
from bench.studies.peers import measured
from sparse_xmc.app.prepare import Terms
from sparse_xmc.data import LabelVocabulary, SparseInputs, open_split
from sparse_xmc.metrics import Truth, ranking_metrics
from sparse_xmc.solver.fit import fit
from sparse_xmc.solver.plan import Plan, plan_for

FOLDER = environment.REPOSITORY / "reports" / "accuracy"
TEST, DEV = RowFile(FOLDER, "direct_test.jsonl"), RowFile(FOLDER, "direct_dev.jsonl")
SOLVER = 3  # version of the solver that rows are of and that the test splits are looked at once with
METRICS = tuple(f"{kind}@{k}" for kind in ("P", "PSP") for k in (1, 3, 5))
TAILS = [0.25, 0.5, 0.75, 1.0]
_HELD = 3000
# parts left out, one at a time, from the default's plan: where labels have shortlists, and where they learn from all rows
PARTS: dict[str, dict[str, Any]] = {
    "default": {},
    "without levels": {"clusterings": 0},
    "without a choice of connections": {"frequent": (256,), "clusterings": 0},
    "without a choice of the cost": {"frequent": (256,), "costs": (1.0,), "clusterings": 0},
    "one round of negatives": {"rounds": 1, "clusterings": 0},
    "no uniform sample of negatives": {"sample": 0, "clusterings": 0},
    "nothing held out": {"choose": False},
}
WHOLE_PARTS: dict[str, dict[str, Any]] = {
    "default": {},
    "256 connections": {"rare": (256,), "frequent": (256,)},
    "without a choice of the cost": {"costs": (0.5,)},
    "nothing held out": {"choose": False},
    "shortlists": {},  # in place of all rows
    "shortlists, without levels": {"clusterings": 0},
}


class Split(NamedTuple):
    """Training rows with the rows held back from them."""

    x: sp.csr_matrix
    y: sp.csr_matrix
    held: sp.csr_matrix
    true: sp.csr_matrix

    @property
    def frequencies(self) -> np.ndarray:
        return np.bincount(self.y.indices, minlength=self.y.shape[1])


def _of_this_solver(file: RowFile) -> list[Row]:
    return [row for row in file.read() if row.get("solver") == SOLVER]


def test_rows(options: argparse.Namespace) -> None:
    """One row a set, effort and seed."""
    done = {(row["set"], row["effort"], row["seed"]) for row in _of_this_solver(TEST)}
    for name in options.only:
        for effort in options.efforts:
            for seed in options.seeds:
                if (name, effort, seed) not in done:
                    row = {
                        "set": name,
                        "effort": effort,
                        "seed": seed,
                        "solver": SOLVER,
                        **_trained(name, effort, seed, options),
                    }
                    TEST.append(row | _machine())
                    print(json.dumps(row), flush=True)


def _trained(name: str, effort: str, seed: int, options: argparse.Namespace) -> Row:
    train, test, fields = FILES[name]
    folder = os.path.join(options.data, name)
    with tempfile.TemporaryDirectory() as scratch:
        run = os.path.join(scratch, "run")
        command = [sys.executable, "-m", "sparse_xmc", "train", "--train", os.path.join(folder, train)]
        command += ["--test", os.path.join(folder, test), "--out", run, "--effort", effort, "--seed", str(seed)]
        command += ["--threads", str(options.threads), "--no-progress"]
        if fields:
            command += ["--text-field", ",".join(fields["text_fields"]), "--label-field", fields["label_field"]]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done, peak = measured(command, timeout=3600)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        metrics = json.loads(Path(run, "metrics.json").read_text())
        sizes = [path.stat().st_size for path in Path(run).rglob("*") if path.is_file()]
    return {
        **{metric: round(metrics[metric], 2) for metric in METRICS},
        "cpu_s": round(usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime, 1),
        "wall_s": round(time.monotonic() - began, 1),
        "peak_mib": round(peak / 2**20),
        "disk_mb": round(sum(sizes) / 1e6, 1),
        "threads": options.threads,
        "said": [
            line
            for line in done.stdout.splitlines()
            if line.startswith(("terms", "chosen", "tried", "nothing", "head:"))
        ],
    }


def _machine() -> Row:
    return {"commit": environment.commit()[:7], "device": environment.describe("cpu").get("device")}


def split_of(name: str, data: str) -> Split:
    """The training file of a set, a part of its rows held back."""
    train, _, fields = FILES[name]
    inputs, rows = Terms({}).fit(open_split(os.path.join(data, name, train), **fields))
    assert isinstance(inputs, SparseInputs)
    targets = LabelVocabulary.from_rows(rows).encode(rows)
    order = np.random.default_rng(1).permutation(targets.shape[0])
    count = min(_HELD, len(order) // 5)
    away, kept = np.sort(order[:count]), np.sort(order[count:])
    x = inputs.matrix
    return Split(x[kept], targets[kept].tocsr(), x[away], targets[away].tocsr())


def dev_rows(options: argparse.Namespace) -> None:
    done = {(row["set"], row["part"], row["tail"]) for row in _of_this_solver(DEV)}
    for name in options.only:
        split = split_of(name, options.data)
        parts = WHOLE_PARTS if _plan(split, "default").whole else PARTS
        wanted = [(part, 0.0) for part in parts if part in (options.parts or parts)]
        wanted += [("default", tail) for tail in options.tails]
        for part, tail in wanted:
            if (name, part, tail) not in done:
                plan = dataclasses.replace(_plan(split, part), **parts[part])
                row = {"set": name, "part": part, "tail": tail, "solver": SOLVER, **_judged(split, plan, tail)}
                DEV.append(row | _machine())
                print(json.dumps(row), flush=True)


def _plan(split: Split, part: str) -> Plan:
    rows, terms = split.x.shape
    known = None if part.startswith("shortlists") else rows
    return plan_for("normal", split.frequencies, terms, entries=split.x.nnz / rows, rows=known)


def _judged(split: Split, plan: Plan, tail: float) -> Row:
    cpu = time.process_time()
    solution = fit(split.x, split.y, plan, tail=tail)
    spent = time.process_time() - cpu
    top = solution.head.invert(split.x.shape[1]).topk(split.held, 5)[1]
    truth = Truth.from_training(split.true, np.diff(split.true.indptr), split.frequencies, split.x.shape[0])
    metrics = ranking_metrics(top, truth)
    return {**{m: round(metrics[m], 2) for m in METRICS}, "cpu_s": round(spent, 1), "said": solution.lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("test", "dev", "report"))
    parser.add_argument("--data", default=os.environ.get("SPARSE_XMC_DATA", "../shared/data"))
    parser.add_argument("--only", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--efforts", nargs="+", default=["normal", "best"], choices=["fast", "normal", "best"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parts = list(PARTS | WHOLE_PARTS)
    parser.add_argument("--parts", nargs="*", choices=parts, help="dev: what is left out (default: all that a set has)")
    parser.add_argument("--tails", nargs="*", type=float, default=TAILS, help="dev: weights of PSP@k in the choice")
    options = parser.parse_args()
    if options.verb == "report":
        from bench.direct_report import write_report

        write_report(_of_this_solver(TEST), _of_this_solver(DEV))
    else:
        {"test": test_rows, "dev": dev_rows}[options.verb](options)


if __name__ == "__main__":
    sys.exit(main())
