"""A suite runs to its end, a failure is a row, and an interrupted run goes on where it stopped."""

import json
import subprocess
import sys
import tempfile

import pytest

from bench.__main__ import main
from bench.environment import REPOSITORY, available_bytes
from bench.measure import Budget
from bench.point import Point
from bench.rows import RowFile, job_key
from bench.runner import run_suite, run_task
from bench.suites import SUITES
from bench.worker import Task
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="benchmarks never run in the interpreter")

QUICK = Budget(0.01, 0.0, 2, 3)
TINY = Point("full", 300, D=32, K=4, B=4)
PAIR = ["sparse_xmc", "dense"]
PATIENCE = 900  # seconds: kernels may have to be compiled first, on a busy machine
KILLED_AFTER_THREE_ROWS = """
import os, signal, sys
from bench.__main__ import main
from bench.rows import RowFile

append, timed = RowFile.append, []

def append_and_die(self, row):
    append(self, row)
    timed.append(row["kind"] == "time")
    if sum(timed) == 3:
        os.killpg(0, signal.SIGKILL)

RowFile.append = append_and_die
main(sys.argv[1:])
"""


def test_every_provider_leaves_a_row_whatever_happens() -> None:
    task = Task("time", ("dense", "semi_structured_2_4", "gather_einsum"), TINY, QUICK)
    rows = list(run_task(task, timeout=PATIENCE))
    status = {row["provider"]: row["status"] for row in rows}
    assert status == {"dense": "ok", "semi_structured_2_4": "unsupported", "gather_einsum": "ok"}
    assert all(row["status"] == "ok" or row["reason"] for row in rows)


@pytest.mark.skipif(available_bytes() is None, reason="the system does not say how much memory is free")
def test_what_cannot_fit_is_not_tried() -> None:
    (row,) = run_task(Task("memory", ("dense",), Point("full", 10**9), QUICK), timeout=PATIENCE)
    assert row["status"] == "oom" and row["reason"].startswith("predicted")


def test_timeout_is_a_row() -> None:
    (row,) = run_task(Task("time", ("dense",), TINY, QUICK), timeout=0)
    assert row["status"] == "error" and "longer than" in row["reason"]


def test_an_unknown_op_is_unsupported_not_a_crash(tmp_path) -> None:
    tasks = [Task("time", ("bottleneck",), Point("rewire", 300, D=32, K=4, B=4), QUICK)]
    run_suite("test", tasks, tmp_path, fresh=False, timeout=PATIENCE, show=lambda line: None)
    (row,) = [r for r in RowFile(tmp_path).read() if r["kind"] == "time"]
    assert row["status"] == "unsupported" and "rewire" in row["reason"]
    assert row["commit"] and row["torch"] and row["command"] and row["cores"] and row["timestamp"]


def _python(*arguments: str, **options) -> tuple[int, str]:
    """Exit code and output; what the command leaves behind may keep the output open, so it goes to a file."""
    command = [sys.executable, *arguments]
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(command, cwd=REPOSITORY, stdout=output, stderr=output, timeout=PATIENCE, **options)
        output.seek(0)
        return done.returncode, output.read()


def test_interrupted_smoke_run_resumes_without_losing_or_repeating_rows(tmp_path) -> None:
    arguments = ["run", "--suite", "smoke", "--device", "cpu", "--out", str(tmp_path), "--providers", *PAIR]
    code, output = _python("-c", KILLED_AFTER_THREE_ROWS, *arguments, start_new_session=True)
    file = RowFile(tmp_path)
    assert code < 0 and sum(r["kind"] == "time" for r in file.read()) == 3, output
    before = file.path.read_bytes()

    code, output = _python("-m", "bench", *arguments)
    assert code == 0, output
    assert "resuming run" in output
    assert file.path.read_bytes().startswith(before.rpartition(b"\n")[0]), "earlier rows were rewritten"
    rows = [r for r in file.read() if "status" in r]
    assert len({job_key(r) for r in rows}) == len(rows), "a job was repeated"
    assert {(r["provider"], r["mode"]) for r in rows if r["kind"] == "time"} == {
        ("sparse_xmc", "rewire"),
        *((provider, mode) for provider in PAIR for mode in ("forward", "full", "step")),
    }
    bad = [json.dumps(r) for r in rows if r["status"] != "ok"]
    assert not bad, bad


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_lists_its_tasks(name, tmp_path, capsys) -> None:
    assert main(["run", "--suite", name, "--device", "cpu", "--out", str(tmp_path), "--list"]) == 0
    assert "sparse_xmc" in capsys.readouterr().out
