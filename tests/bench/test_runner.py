"""A suite runs to its end, a failure is a row, and an interrupted run goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bench.__main__ import main
from bench.environment import REPOSITORY
from bench.measure import Budget
from bench.registry import Point
from bench.rows import RowFile, job_key
from bench.runner import run_suite, run_task
from bench.suites import SUITES
from bench.worker import Task
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="benchmarks never run in the interpreter")

QUICK = Budget(0.01, 0.0, 2, 3)
TINY = Point("full", 300, D=32, K=4, B=4)
PAIR = ["sparse_xmc", "dense"]


def test_every_provider_leaves_a_row_whatever_happens() -> None:
    task = Task("time", ("dense", "semi_structured_2_4", "gather_einsum"), TINY, QUICK)
    rows = list(run_task(task, timeout=120))
    status = {row["provider"]: row["status"] for row in rows}
    assert status == {"dense": "ok", "semi_structured_2_4": "unsupported", "gather_einsum": "ok"}
    assert all(row["status"] == "ok" or row["reason"] for row in rows)


def test_what_cannot_fit_is_not_tried() -> None:
    (row,) = run_task(Task("memory", ("dense",), Point("full", 10**9), QUICK), timeout=120)
    assert row["status"] == "oom" and row["reason"].startswith("predicted")


def test_timeout_is_a_row() -> None:
    (row,) = run_task(Task("time", ("dense",), TINY, QUICK), timeout=0.01)
    assert row["status"] == "error" and "longer than" in row["reason"]


def test_an_unknown_op_is_unsupported_not_a_crash(tmp_path) -> None:
    tasks = [Task("time", ("bottleneck",), Point("rewire", 300, D=32, K=4, B=4), QUICK)]
    run_suite("test", tasks, tmp_path, fresh=False, timeout=60, show=lambda line: None)
    (row,) = [r for r in RowFile(tmp_path).read() if r["kind"] == "time"]
    assert row["status"] == "unsupported" and "rewire" in row["reason"]
    assert row["commit"] and row["torch"] and row["command"] and row["cores"] and row["timestamp"]


def _bench(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)


def test_interrupted_smoke_run_resumes_without_losing_or_repeating_rows(tmp_path) -> None:
    arguments = ["run", "--suite", "smoke", "--device", "cpu", "--out", str(tmp_path), "--providers", *PAIR]
    first = _bench(*arguments, start_new_session=True)
    file = RowFile(tmp_path)
    deadline = time.monotonic() + 120
    while sum(r["kind"] == "time" for r in file.read()) < 3:
        assert first.poll() is None and time.monotonic() < deadline, first.stdout.read().decode()
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = file.path.read_bytes()

    second = _bench(*arguments)
    output = second.communicate(timeout=240)[0].decode()
    assert second.returncode == 0, output
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
