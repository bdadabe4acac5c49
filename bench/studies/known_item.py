"""Known-item search over 670,091 labels under a hard limit of memory: this library beside exact nearest neighbours, a
low-rank head of the same bytes, omikuji and PECOS.

    python -m bench.studies.known_item --data ../shared/data/PyPI-KnownItem --peers /path/to/their/python --out reports/scale

Each runs in processes of its own under the same limit (``bench/limited.py``). The others get the rows as this library's tf-idf
makes them, from a file; making it is part of nobody's time but ours. What fails is tried again on half of the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from bench.environment import REPOSITORY, describe
from bench.limited import Outcome, run_limited
from sparse_xmc.data import TfidfFeatures, open_split
from sparse_xmc.solver.head import InvertedIndex

FAN_IN, TERMS = 32, 1_000_000
_TOP = 5
_TOLD = ("commit", "python", "cpu", "cores", "memory_bytes", "numpy", "scipy", "numba")
_ENTRY = 6  # bytes of a connection as it is stored: 32-bit index, 16-bit weight
_PEERS = Path(__file__).parents[1] / "peers" / "known_item.py"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl.gz and test.jsonl.gz")
    parser.add_argument("--peers", help="Python with omikuji and PECOS; left out: neither runs")
    parser.add_argument("--only", nargs="+", choices=("ours", "nearest", "lowrank", "omikuji", "pecos"))
    parser.add_argument("--limit", type=int, default=4 * 10**9, help="bytes (default: 4,000,000,000)")
    parser.add_argument("--seconds", type=float, default=3600, help="that each may take (default: 3600)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "reports" / "local")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(_PARTS[options.part[0]](Path(options.part[1]))))
        return 0
    wanted = options.only or ["ours", "nearest", "lowrank", *(["omikuji", "pecos"] if options.peers else [])]
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in _rows(options, wanted, Path(folder)):
            about = describe("cpu")
            row |= {"limit": options.limit, "environment": {name: about[name] for name in _TOLD if name in about}}
            with open(options.out / "known_item.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print({name: value for name, value in row.items() if name not in ("samples", "environment")}, flush=True)
    return 0


def _rows(options: argparse.Namespace, wanted: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    if "ours" in wanted:
        yield _ours(options, folder)
    others = [name for name in wanted if name != "ours"]
    if not others:
        return
    count = write_matrices(options.data, folder)
    for name in others:
        rows = count
        while True:
            row = _other(options, name, folder, rows)
            yield row
            if row["status"] == "ok" or rows < count // 16:
                break
            rows //= 2


def _ours(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    train, test, run = options.data / "train.jsonl.gz", options.data / "test.jsonl.gz", folder / "run"
    command = [
        sys.executable,
        "-m",
        "sparse_xmc",
        "train",
        "--train",
        str(train),
        "--test",
        str(test),
        "--out",
        str(run),
    ]
    command += ["--min-df", "1", "--max-features", str(TERMS), "--fan-in", str(FAN_IN), "--no-progress"]
    outcome = run_limited(command, options.limit, seconds=options.seconds)
    row = _row("sparse_xmc", outcome, options.seconds)
    if outcome.status == 0:
        metrics = json.loads((run / "metrics.json").read_text())
        size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        row |= {"P@1": metrics["P@1"], "R@5": metrics["R@5"], "disk": size, "rows": int(metrics["bins"][0]["labels"])}
    return row


def _other(options: argparse.Namespace, name: str, folder: Path, rows: int) -> dict[str, Any]:
    environment = {"KNOWN_ITEM_ROWS": str(rows)}
    if name in _PARTS:
        command = [sys.executable, "-m", "bench.studies.known_item", "--data", ".", "--part", name, str(folder)]
    else:
        command = [options.peers, str(_PEERS), name, str(folder)]
        environment["PYTHONPATH"] = ""
    outcome = run_limited(command, options.limit, seconds=options.seconds, environment=environment)
    row = _row(name, outcome, options.seconds) | {"rows": rows}
    return row | json.loads(outcome.output[-1]) if outcome.status == 0 else row


def _row(name: str, outcome: Outcome, seconds: float) -> dict[str, Any]:
    late = f"not done in {seconds:g} s" if outcome.seconds > seconds else f"ended with {outcome.status}"
    row: dict[str, Any] = {"name": name, "status": "ok" if outcome.status == 0 else late}
    row |= {"seconds": round(outcome.seconds, 1), "cpu_seconds": round(outcome.cpu_seconds, 1)}
    row |= {"peak_mib": outcome.peak, "samples": outcome.samples}
    return row if outcome.status == 0 else row | {"said": outcome.output[-3:]}


def write_matrices(data: Path, folder: Path) -> int:
    """tf-idf rows of both splits and the label of each row, for those that read no texts; the number of rows."""
    features = TfidfFeatures(min_df=1, max_features=TERMS)
    splits = {name: open_split(data / f"{name}.jsonl.gz") for name in ("train", "test")}
    sp.save_npz(folder / "train.npz", features.fit_transform(iter(splits["train"])), compressed=False)
    sp.save_npz(folder / "test.npz", features.transform(iter(splits["test"])), compressed=False)
    number = {label: i for i, label in enumerate(splits["train"].labels.names)}
    for name, split in splits.items():
        labels = [number[split.labels.row(i)[0]] for i in range(len(split.labels))]
        np.save(folder / f"{name}.npy", np.array(labels))
    return len(splits["train"].labels)


def load(folder: Path) -> tuple[sp.csr_matrix, sp.csr_matrix, np.ndarray]:
    """Rows of labels, one each in their order, queries, and the label that each query is after; of as many rows as asked
    for, and the queries after those."""
    x, queries = sp.load_npz(folder / "train.npz"), sp.load_npz(folder / "test.npz")
    order, wanted = np.load(folder / "train.npy"), np.load(folder / "test.npy")
    x = x[np.argsort(order)][: int(os.environ["KNOWN_ITEM_ROWS"])]
    there = wanted < x.shape[0]
    return x, queries[there], wanted[there]


def judged(top: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    hit = top == wanted[:, None]
    return {"P@1": 100 * float(hit[:, 0].mean()), "R@5": 100 * float(hit.any(axis=1).mean()), "queries": len(wanted)}


def nearest(folder: Path) -> dict[str, Any]:
    """The rows with the largest cosine, exact."""
    x, queries, wanted = load(folder)
    by_term = x.tocsc()
    index = InvertedIndex(
        by_term.indptr.astype(np.int64),
        by_term.indices.astype(np.int32),
        by_term.data,
        np.zeros(x.shape[0], np.float32),
    )
    return judged(index.topk(queries, _TOP)[1], wanted) | {"disk": x.nnz * 8 + x.shape[1] * 8}


def low_rank(folder: Path) -> dict[str, Any]:
    """Cosines of projections on as many singular vectors as fit into the bytes of a head of fixed fan-in, in 16 bits."""
    from sklearn.decomposition import TruncatedSVD

    x, queries, wanted = load(folder)
    size = x.shape[0] * FAN_IN * _ENTRY
    rank = size // (2 * sum(x.shape))
    vectors = TruncatedSVD(rank, n_iter=2, random_state=0).fit(x).components_.T.astype(np.float16)
    labels, asked = (x @ vectors.astype(np.float32)).astype(np.float32), queries @ vectors.astype(np.float32)
    labels = (labels / np.maximum(np.linalg.norm(labels, axis=1, keepdims=True), 1e-12)).astype(np.float16)
    top = np.empty((len(wanted), _TOP), np.int64)
    dense = labels.astype(np.float32).T.copy()
    for start in range(0, len(top), 64):
        scores = asked[start : start + 64] @ dense
        best = np.argpartition(-scores, _TOP, axis=1)[:, :_TOP]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
        top[start : start + 64] = np.take_along_axis(best, order, axis=1)
    return judged(top, wanted) | {"disk": size, "rank": rank}


_PARTS = {"nearest": nearest, "lowrank": low_rank}

if __name__ == "__main__":
    sys.exit(main())
