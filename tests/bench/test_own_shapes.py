"""Runs of a user's own sizes and providers, their summary, and comparisons of two folders or commits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import __main__, compare, summary
from bench.__main__ import main
from bench.environment import REPOSITORY
from bench.point import MODES
from bench.providers import FILES
from bench.rows import RowFile
from tests.bench.test_report import _row
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="benchmarks never run in the interpreter")

PROVIDER = """
from bench.providers._linear import LinearProvider, matrices_bytes
from bench.weights import EllWeights

class Mine(LinearProvider):
    name = "mine"
    label = "my own layer"

    def predicted_bytes(self, point):
        return matrices_bytes(point, point.L * point.K)

    def layer(self, point, problem):
        weights = EllWeights(problem.weight.clone(), problem.label_indices, point.D, 1, problem.bias)
        return lambda x: (x[:, weights.indices.long()] * weights.weight).sum(-1), weights

PROVIDERS = (Mine(),)
"""


@pytest.fixture(autouse=True)
def no_files_of_others(monkeypatch):
    monkeypatch.setenv(FILES, "")


def test_own_sizes_and_an_own_provider(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(PROVIDER)
    sizes = "--labels 300,400 --in-features 32 --fan-in 4 --batch-size 4 --modes forward --kinds time"
    own = ["--provider-file", str(tmp_path / "mine.py"), "--providers", "mine", "dense"]
    assert main(["run", *sizes.split(), *own, "--out", str(tmp_path / "out")]) == 0
    rows = [row for row in RowFile(tmp_path / "out").read() if row["kind"] == "time"]
    assert {(row["provider"], row["L"]) for row in rows} == {(p, L) for p in ("mine", "dense") for L in (300, 400)}
    assert all(row["status"] == "ok" and row["checked"] for row in rows), rows
    shown = capsys.readouterr().out
    assert "my own layer" in shown and "times faster than dense" in shown
    assert (tmp_path / "out" / "summary.md").read_text().count("my own layer") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fan-in", "4"], "need --labels"),
        (["--labels", "300", "--suite", "smoke"], "take no --suite"),
        (["--modes", "step"], "give --labels"),
        (["--labels", "300", "--fan-in", "999"], "K must not exceed D"),
        (["--provider-file", "nowhere.py"], "is no Python file"),
        (["--labels", "300", "--modes", "sideways"], "must be among forward, "),
        (["--labels", "300", "--kinds", "space"], "must be among time, memory, got 'space'"),
        (["--labels", "many"], "must be whole numbers separated by commas, got 'many'"),
        (["--labels", ","], "got ','"),
        (["--labels", "0"], "L must be at least 1, got 0"),
        (["--labels", "300", "--dtype", "int8"], "dtype must be one of"),
        (["--labels", "300", "--providers", "none"], "unknown provider 'none'"),
        (["--labels", "300", "--memory-limit-gib", "-3"], "must be a number above 0, got '-3'"),
        (["--suite", "nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_what_cannot_be_run_is_one_line(arguments, message, tmp_path, capsys):
    try:
        outcome = main(["run", *arguments, "--out", str(tmp_path)])
    except SystemExit as ended:
        outcome = ended.code
    said = capsys.readouterr()
    assert outcome in (1, 2) and not said.out
    assert message in said.err and said.err.startswith("bench: ") and said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_modes_of_the_command_line_are_those_that_there_are():
    assert __main__.MODES == MODES


def test_a_provider_file_without_providers_or_with_a_known_name(tmp_path, capsys):
    (tmp_path / "none.py").write_text("PROVIDERS = []\n")
    (tmp_path / "twice.py").write_text(PROVIDER.replace('"mine"', '"dense"'))
    for name, message in (("none.py", "must hold PROVIDERS"), ("twice.py", "'dense' is there twice")):
        assert main(["run", "--labels", "300", "--provider-file", str(tmp_path / name), "--out", str(tmp_path)]) == 1
        assert message in capsys.readouterr().err


def test_summary_compares_equal_work_only():
    rows = [{**_row("sparse_xmc_fused", 2.0, "step"), "run": "r"}, {**_row("dense", 40.0, "step"), "run": "r"}]
    rows += [{**row, "kind": "memory", "peak_bytes": peak} for row, peak in zip(rows, (2**20, 2**25), strict=True)]
    fused = next(line for line in summary.table(rows, "r") if "fused" in line[6])
    assert fused[8].startswith("20.0 (")
    rows[1] = {**rows[1], "checked": False}
    assert next(line for line in summary.table(rows, "r") if "fused" in line[6])[8] == ""


def test_folders_are_compared_by_job(tmp_path, capsys):
    for name, p50 in (("a", 4.0), ("b", 2.0)):
        RowFile(tmp_path / name).append({**_row("dense", p50, "step"), "run": "r"})
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path)]) == 0
    assert " 2.000 " in capsys.readouterr().out
    RowFile(tmp_path / "c").append({**_row("dense", 1.0, "forward"), "run": "r"})
    with pytest.raises(compare.NothingToCompare):
        compare.folders(tmp_path / "a", tmp_path / "c")
    with pytest.raises(ValueError, match=r"holds no rows.jsonl"):
        compare.folders(tmp_path / "a", tmp_path / "nowhere")


def test_commits_are_measured_in_alternation(monkeypatch):
    order: list[str] = []

    def measure(tree: Path, out: Path, arguments: list[str]) -> None:
        order.append(tree.name)
        RowFile(out).append({**_row("dense", 4.0 if tree.name == "tree-0" else 2.0, "step"), "run": "r"})

    checked_out = subprocess.CompletedProcess([], 0, "", "")
    monkeypatch.setattr(compare, "_measure", measure)
    monkeypatch.setattr(compare.subprocess, "run", lambda *a, **k: checked_out)
    (line,) = compare.commits("old", "new", 3, [])
    assert " 2.000  [2.000, 2.000]" in line
    assert order == ["tree-0", "tree-1", "tree-1", "tree-0", "tree-0", "tree-1"]


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="no repository")
def test_an_unknown_commit_is_named():
    with pytest.raises(ValueError, match="cannot check out 'no-such-commit'"):
        compare.commits("no-such-commit", "HEAD", 1, [])


_SLOW = """
import pathlib, sys, time
pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).touch()  # under way
time.sleep(300)
"""
_COMPARE = """
import pathlib, runpy, sys
from bench import compare
compare.REPOSITORY = pathlib.Path(sys.argv.pop(1))
runpy.run_module("bench", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGTERM") or os.name == "nt", reason="ended by a signal")
def test_a_comparison_that_is_ended_leaves_no_work_tree(tmp_path):
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=repository, capture_output=True, text=True, check=True
        ).stdout

    repository, scratch = tmp_path / "repository", tmp_path / "scratch"
    scratch.mkdir()
    (repository / "bench").mkdir(parents=True)
    (repository / "bench" / "__main__.py").write_text(_SLOW)
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    command = [sys.executable, "-c", _COMPARE, str(repository), "compare", "HEAD", "HEAD~0"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env={**os.environ, "TMPDIR": str(scratch)})
    while not list(scratch.glob("*/rows-0-*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert process.wait(60) == 143
    assert len(git("worktree", "list").splitlines()) == 1 and not list(scratch.iterdir())
