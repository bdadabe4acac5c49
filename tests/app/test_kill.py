"""A run that is killed 20 times at random moments ends with the bits of one that was left alone."""

import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

from sparse_xmc.app.log import read_log
from sparse_xmc.storage.checkpoint import read_folder

KILLS = 20
ROOT = pathlib.Path(__file__).parents[2]


def write_data(path):
    rng = random.Random(0)
    words = [f"word{i}" for i in range(30)]
    with path.open("w") as file:
        for _ in range(48):
            chosen = rng.sample(words, 6)
            file.write(json.dumps({"text": " ".join(chosen), "labels": [w for w in chosen if w > "word2"][:3]}) + "\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_runs_resume_exactly(tmp_path):
    write_data(tmp_path / "data.jsonl")
    script = pathlib.Path(__file__).with_name("kill_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "data.jsonl"), str(tmp_path), str(KILLS)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["killed"] == KILLS, outcome
    whole, _ = read_folder(str(tmp_path / "whole" / "model"))
    killed, _ = read_folder(str(tmp_path / "killed" / "model"))
    assert whole["model"].keys() == killed["model"].keys()
    for name, tensor in whole["model"].items():
        assert killed["model"][name].equal(tensor), name
    assert read_log(tmp_path / "killed" / "metrics.jsonl") == read_log(tmp_path / "whole" / "metrics.jsonl")
