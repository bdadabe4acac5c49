"""Sets that nothing was developed on, made from the packages of this machine, and this project beside omikuji on them.

    python -m bench.studies.unseen make manual --out cache/manual      # manual pages -> the pages that they refer to
    python -m bench.studies.unseen make german --out cache/german      # German messages -> the programs that have them
    python -m bench.studies.unseen make rust --out cache/rust          # what Rust's documentation says -> modules and kind
    python -m bench.studies.unseen make debian --out cache/debian      # descriptions of Debian's packages -> their tags
    python -m bench.studies.unseen make calls --out cache/calls        # first lines of docstrings -> functions called
    python -m bench.studies.unseen make imports --out cache/imports    # names in Python files -> packages imported
    python -m bench.studies.unseen make arguments --out cache/arguments   # functions' documentation -> their arguments
    python -m bench.studies.unseen run manual --out cache/manual --peers ~/peers/bin/python

``run`` solves at the defaults, lets omikuji (three trees, its defaults) read the same tf-idf rows, and judges both on the rows
kept for the test. It is meant to be run once: a set is unseen until it has been looked at.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from bench.studies.unseen_sets import KINDS
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.jobs import train
from sparse_xmc.data import open_split
from sparse_xmc.metrics import Truth, ranking_metrics

_SHARE, _SEED, _LEAST = 0.25, 7, 3  # of the rows for the test; rows a label must have
_MOST = 60_000  # rows
# run by the peers' Python: features in the repository's format, one line of five labels a row out
PEER = """
import sys, omikuji, scipy.sparse as sp
x, held = sp.load_npz(sys.argv[2]).tocsr(), sp.load_npz(sys.argv[3]).tocsr()
model = omikuji.Model.train_on_data(sys.argv[1], omikuji.Model.default_hyper_param(), n_threads=int(sys.argv[4]))
for i in range(held.shape[0]):
    a, b = held.indptr[i : i + 2]
    row = list(zip(held.indices[a:b].tolist(), held.data[a:b].tolist()))
    print(*[label for label, _ in model.predict(row, beam_size=10, top_k=5)])
"""


def make(kind: str, out: Path) -> None:
    """Writes train.jsonl and test.jsonl; a text that stands twice is kept once."""
    read, folder = KINDS[kind]
    rows = list(dict(read(folder)).items())
    counts = Counter(label for _, labels in rows for label in set(labels))
    rows = [(text, sorted({label for label in labels if counts[label] >= _LEAST})) for text, labels in rows]
    rows = [row for row in rows if row[1]]
    random.Random(_SEED).shuffle(rows)
    del rows[_MOST:]
    count = round(_SHARE * len(rows))
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("test", rows[:count]), ("train", rows[count:])):
        with open(out / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for text, labels in part:
                file.write(json.dumps({"text": text, "labels": labels}) + "\n")
    frequent = ", ".join(f"{label} {count}" for label, count in counts.most_common(5))
    print(
        f"{len(rows) - count:,} and {count:,} rows, {sum(c >= _LEAST for c in counts.values()):,} labels: {frequent}, ..."
    )


def run(out: Path, peers: str, threads: int) -> None:
    lines: list[str] = []
    files = {name: str(out / f"{name}.jsonl") for name in ("train", "test")}
    train(TrainingConfig(**files, out=str(out / "run"), progress=False, threads=threads), report=lines.append)
    print(*[line for line in lines if line.startswith(("chosen", "tried", "refitted"))], sep="\n")
    bundle = Bundle.load(out / "run")
    x, rows = bundle.preparation.transform(open_split(files["train"]))
    held, true = bundle.preparation.transform(open_split(files["test"]))
    targets, wanted = bundle.vocabulary.encode(rows), bundle.vocabulary.encode(true)
    truth = Truth.from_training(wanted, true.counts(), bundle.frequencies, targets.shape[0])
    ours = bundle.model.topk(held, np.arange(wanted.shape[0]), 5)[1]
    report("sparse_xmc", ours, truth)
    report("omikuji, 3 trees", _omikuji(out, x.matrix, targets, held.matrix, peers, threads), truth)


def _omikuji(
    out: Path, x: sp.csr_matrix, targets: sp.csr_matrix, held: sp.csr_matrix, peers: str, threads: int
) -> np.ndarray:
    with open(out / "rows.txt", "w") as file:
        some = np.flatnonzero(np.diff(x.indptr))  # omikuji reads no row without a term
        file.write(f"{len(some)} {x.shape[1]} {targets.shape[1]}\n")
        for i in some:
            labels = targets.indices[targets.indptr[i] : targets.indptr[i + 1]]
            row = slice(x.indptr[i], x.indptr[i + 1])
            pairs = " ".join(f"{t}:{v:.6f}" for t, v in zip(x.indices[row], x.data[row], strict=True))
            file.write(",".join(map(str, labels)) + f" {pairs}\n")
    for name, matrix in (("train", x), ("test", held)):
        sp.save_npz(out / f"{name}.npz", matrix)
    command = [peers, "-c", PEER, str(out / "rows.txt"), str(out / "train.npz"), str(out / "test.npz"), str(threads)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [[int(label) for label in line.split()] for line in said[-held.shape[0] :]]
    return np.array([[*row, *[-1] * 5][:5] for row in found])


def report(name: str, top: np.ndarray, truth: Truth) -> None:
    metrics = ranking_metrics(top, truth)
    print(
        f"{name:18}" + "  ".join(f"{m} {metrics[m]:.2f}" for m in (f"{p}@{k}" for p in ("P", "PSP") for k in (1, 3, 5)))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("make", "run"))
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, default=Path("cache/unseen"))
    parser.add_argument("--peers", default=sys.executable, help="a Python that has omikuji")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.verb == "make":
        make(options.kind, options.out)
    else:
        run(options.out, options.peers, options.threads)


if __name__ == "__main__":
    main()
