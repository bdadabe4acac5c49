"""``train`` under torchrun: the single process's metrics, half of the head on each of two ranks, resumed by one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

OPTIONS = ["--text-field", "text", "--label-field", "labels", "--epochs", "3", "--fan-in", "8", "--batch-size", "16"]
OPTIONS += ["--checkpoint-seconds", "1000"]  # after each epoch only


def write_documents(path: Path, first: int, count: int) -> None:
    """Every document is about two of 40 topics, in words that name them."""
    with open(path, "w") as file:
        for i in range(first, first + count):
            topics = sorted({i % 40, (7 * i + i // 40) % 40})
            words = [f"word{topic}{kind}" for topic in topics for kind in "abc"]
            file.write(json.dumps({"text": " ".join(words), "labels": [f"label{topic}" for topic in topics]}) + "\n")


def run(launcher: list[str], *arguments: str) -> str:
    command = [sys.executable, *launcher, "-m", "sparse_xmc", "train", *OPTIONS, *arguments]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout + done.stderr


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def check_same(got: dict[str, float], expected: dict[str, float]) -> None:
    for name in ("P@1", "P@3", "P@5", "nDCG@5", "PSP@1"):
        assert got[name] == pytest.approx(expected[name], abs=1.5), name


def test_two_ranks_give_the_metrics_of_one(tmp_path):
    write_documents(tmp_path / "train.jsonl", 0, 320)
    write_documents(tmp_path / "test.jsonl", 1000, 80)
    test = str(tmp_path / "test.jsonl")
    files = ["--train", str(tmp_path / "train.jsonl"), "--test", test, "--valid", test]
    alone = run([], *files, "--out", str(tmp_path / "one"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    both = run(launcher, *files, "--out", str(tmp_path / "two"))
    one = metrics(tmp_path / "one")
    assert one["P@1"] > 60
    check_same(metrics(tmp_path / "two"), one)
    size = re.compile(r"head: ([\d.]+) MiB")
    assert "on each of 2 ranks" in both
    assert float(size.search(both)[1]) <= 0.6 * float(size.search(alone)[1]) + 0.1

    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-0000000060")
    os.remove(tmp_path / "two" / "metrics.json")
    assert "resumed at step 40 of 60" in run([], *files, "--out", str(tmp_path / "two"))
    check_same(metrics(tmp_path / "two"), one)
