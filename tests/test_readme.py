"""Runs every snippet of the README, in order, in a scratch folder."""

import gzip
import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
COMMANDS = [line.split("  #")[0] for kind, text in BLOCKS if kind == "bash" for line in text.splitlines() if line]


def test_every_block_is_of_a_kind_that_is_run():
    assert {kind for kind, _ in BLOCKS} <= {"python", "bash", "toml"}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, check=True, capture_output=True)


def write_documents(path: Path, count: int, seed: int) -> None:
    words = {"sport": "ball team goal", "law": "court judge appeal", "food": "bread salt oven"}
    rng = random.Random(seed)
    with gzip.open(path, "wt") as file:
        for _ in range(count):
            labels = rng.sample(sorted(words), rng.randint(1, 2))
            text = " ".join(rng.choices(" ".join(words[label] for label in labels).split(), k=12))
            file.write(json.dumps({"text": text, "labels": labels}) + "\n")


def test_blocks_in_order(tmp_path, monkeypatch):
    """Python in one namespace and commands as printed, on a small data set of the file names that they mention."""
    write_documents(tmp_path / "train.jsonl.gz", 200, seed=0)
    write_documents(tmp_path / "test.jsonl.gz", 50, seed=1)
    with gzip.open(tmp_path / "test.jsonl.gz", "rt") as source:
        (tmp_path / "texts.jsonl").write_text(source.read())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    namespace = {"__name__": "readme"}
    for kind, text in BLOCKS:
        if kind == "python":
            exec(compile(text, "README.md", "exec"), namespace)
        for command in (line for line in text.splitlines() if kind == "bash" and line.startswith("python -m ")):
            done = subprocess.run([sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
