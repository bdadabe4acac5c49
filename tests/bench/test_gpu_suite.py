"""The unattended suite: what its parts need outside a GPU, and the report made of its folder."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from bench import end_to_end, gpu_report, suites, two_ranks
from bench.environment import REPOSITORY
from bench.point import Point
from bench.providers import get_provider
from bench.report_index import regenerate
from bench.rows import RowFile
from bench.tune import points
from tests.bench.test_report import _row
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="benchmarks never run in the interpreter")


def test_encoder_and_head_step(tmp_path) -> None:
    assert end_to_end.measure(tmp_path, "cpu", small=True) == 0
    rows = RowFile(tmp_path).read()
    assert [(r["provider"], r["status"]) for r in rows] == [(name, "ok") for name in end_to_end.HEADS], rows
    assert all(r["p50_ms"] > 0 and r["peak_bytes"] > 0 for r in rows)


def test_report_of_a_folder_and_index(tmp_path) -> None:
    source, reports = tmp_path / "out", tmp_path / "reports"
    file = RowFile(source)
    for L in (1000, 2000):
        for provider in ("sparse_xmc_fused", "dense"):
            row = _row(provider, 3.0, "step", L, gpu="NVIDIA Test-1")
            file.append(row)
            file.append({**row, "kind": "memory", "peak_bytes": 10**6})
    file.append(
        {**_row("sparse_xmc", 1.0, gpu="NVIDIA Test-1"), "kind": "tune", "first_ms": 2.0, "tuned_ms": 1.0, "gain": 2}
    )
    file.append({"kind": "end", "run": "r", "suite": "gpu"})
    (source / "environment.json").write_text(json.dumps({"gpu": "NVIDIA Test-1", "torch": "2", "commit": "c0ffee"}))
    (source / "done").mkdir()
    (source / "done" / "tests").write_text("0")
    (source / "tests.log").write_text("===== 12 passed, 3 skipped in 4.5s =====\n")
    folder = gpu_report.make(source, reports)
    text = (folder / "README.md").read_text()
    assert folder == reports / "gpu" / "nvidia-test-1" and (folder / "figures" / "headline.png").exists()
    assert "12 passed" in text and "2.00x" in text and "NVIDIA Test-1" in text
    index = regenerate(reports).read_text()
    assert "- [NVIDIA Test-1](gpu/nvidia-test-1)" in index and "No GPU has been measured" not in index


def test_ranks_are_compared_with_one_process(tmp_path) -> None:
    pytest.importorskip("numba")
    assert two_ranks.measure(tmp_path, "cpu", small=True) == 0
    rows = RowFile(tmp_path).read()
    assert len(rows) == 8 and {row["status"] for row in rows} == {"ok"}, rows
    text = "\n".join(
        gpu_report._two_ranks([*rows[:1], {**rows[1], "status": "error", "reason": "dx differs"}, rows[-1]])
    )
    assert "| own rows, bce | same |" in text and "| dx differs |" in text and " ms, alone " in text
    with pytest.raises(AssertionError, match="weight differs by 1.0e-03"):
        two_ranks._same(torch.ones(3), torch.tensor([1, 1, 1.001]), "weight")


def test_rows_of_two_gpus_do_not_mix() -> None:
    with pytest.raises(ValueError, match="several GPUs"):
        gpu_report.name_of([{"gpu": "A"}, {"gpu": "B"}])


def test_tuning_covers_what_providers_support() -> None:
    for name, point in points(small=False):
        assert point.mode in get_provider(name).modes and isinstance(point, Point)


def _suite(*arguments, python=sys.executable, tools=""):
    script = [shutil.which("bash") or "bash", str(REPOSITORY / "bench" / "gpu_suite.sh"), *map(str, arguments)]
    env = {"PYTHON": str(python), "PATH": f"{tools}:/usr/bin:/bin"}
    return subprocess.run(script, capture_output=True, text=True, env=env)


FAKE_PYTHON = """#!/bin/bash
case "$*" in
    *"-c import torch"*) echo cpu ;;
    *)
        echo "$3" >> {folder}/rows.jsonl
        case "$*" in *{slow}*) touch {mark}; sleep 600 ;; *{failing}*) exit 3 ;; esac ;;
esac
"""


def _python(tmp_path, *, slow="no-such-part", failing="no-such-part", folder="out"):
    python = tmp_path / f"python-{slow}-{failing}-{folder}"
    values = {"folder": tmp_path / folder, "mark": tmp_path / "slow-part-runs", "slow": slow, "failing": failing}
    python.write_text(FAKE_PYTHON.format(**values))
    python.chmod(0o755)
    (tmp_path / folder).mkdir(exist_ok=True)
    return python


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what happens without a GPU")
def test_suite_refuses_without_a_gpu_unless_told(tmp_path) -> None:
    done = _suite(tmp_path)
    assert done.returncode == 1 and "--smoke" in done.stderr


def test_suite_refuses_a_python_without_torch(tmp_path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    done = _suite("--smoke", tmp_path / "out", python=python)
    assert done.returncode == 1 and "cannot import torch" in done.stderr
    assert not list((tmp_path / "out" / "done").iterdir())


def test_suite_tells_failed_parts_from_complete_ones(tmp_path) -> None:
    done = _suite("--smoke", tmp_path / "out", python=_python(tmp_path, failing="profile"))
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[-1].endswith("to repeat one): profile ")
    assert "table" in lines[-2] and (tmp_path / "out" / "done" / "profile").read_text() == "3\n"


def test_a_command_that_is_stopped_packs_what_it_has_and_a_fresh_machine_goes_on(tmp_path) -> None:
    script = [shutil.which("bash") or "bash", str(REPOSITORY / "bench" / "gpu_suite.sh"), "--smoke", "1"]
    env = {"PYTHON": str(_python(tmp_path, slow="end_to_end")), "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen([*script, str(tmp_path / "out")], env=env, stdout=subprocess.DEVNULL)
    while not (tmp_path / "slow-part-runs").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=60) != 0
    fresh = tmp_path / "fresh"
    python = _python(tmp_path, folder="fresh")
    shutil.copy(tmp_path / "out" / "part-1.tar.gz", fresh)
    first = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    done = _suite("--smoke", "1", fresh, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "target: done before" in done.stdout and "end_to_end: exit code 0" in done.stdout
    assert (fresh / "rows.jsonl").read_text().splitlines()[: len(first)] == first
    again = _suite("--smoke", "2", fresh, python=python)
    assert again.returncode == 0 and (fresh / "part-2.tar.gz").exists()
    assert "environment" in again.stdout.splitlines()[-1], "parts of the command before count as done"


HASTY_CLOCK = """#!/bin/bash
# timeout -k GRACE SECONDS COMMAND: all of its time is up after one second
shift 3
exec /usr/bin/timeout 1 "$@"
"""


@pytest.mark.skipif(not Path("/usr/bin/timeout").exists(), reason="the clock is GNU timeout's")
def test_nothing_is_lost_when_time_is_up_in_the_middle_of_all_three(tmp_path) -> None:
    """A part of each command runs out of time; a fresh machine that has the three archives only completes them."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "timeout").write_text(HASTY_CLOCK)
    (tools / "timeout").chmod(0o755)
    slow = ("end_to_end", "check", "tune")
    cut = _suite("--smoke", tmp_path / "out", python=_python(tmp_path, slow="*|*".join(slow)), tools=tools)
    assert [line.split()[1] for line in cut.stdout.splitlines() if line.endswith(": stopped")] == [
        f"{s}:" for s in slow
    ]
    rows = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    fresh = tmp_path / "fresh"
    python = _python(tmp_path, folder="fresh")
    for number in (1, 2, 3):
        shutil.copy(tmp_path / "out" / f"part-{number}.tar.gz", fresh)
    done = _suite("--smoke", fresh, python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    repeated = [line.split()[1] for line in done.stdout.splitlines() if ": exit code" in line]
    assert repeated == [f"{part}:" for part in slow]
    assert set(rows) <= set((fresh / "rows.jsonl").read_text().splitlines())


def test_predictions_stand_beside_what_was_measured(tmp_path) -> None:
    point = {"D": 768, "K": 64, "G": 1, "B": 128, "dtype": "bfloat16", "device": "cuda", "gpu": "NVIDIA Test-1"}
    row = _row("sparse_xmc_group32_fused", 0.3, "step", 670_091) | point
    RowFile(tmp_path / "out").append(row | {"host_ms": 0.6, "clock": "graph"})
    text = (gpu_report.make(tmp_path / "out", tmp_path / "reports") / "README.md").read_text()
    assert "0.2 to 0.45 | 0.300" in text and "| graph | 0.600 | 200 % |" in text


def test_atomics_and_gathers_are_checked_before_they_are_timed(tmp_path) -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "bench", "atomics", "--small", "--device", "cpu", "--out", str(tmp_path)]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = RowFile(tmp_path).read()
    assert row["status"] == "ok" and row["additions_per_s"] > 0 and row["gathered_bytes_per_s"] > 0


def test_shapes_that_are_tuned_are_those_of_the_suites() -> None:
    """Every kind of call of our kernels that a GPU suite times has been searched before, the target's first."""
    tuned = list(points(small=False))
    kinds = {(name, p.mode, p.K, p.G, p.dtype, (p.B - 1).bit_length(), (p.L - 1).bit_length()) for name, p in tuned}
    assert len(kinds) == len(tuned)
    for suite in ("target", "gpu"):
        for sweep in suites.SUITES[suite]("cuda")[0]:
            for point in sweep.points:
                for name in sweep.providers:
                    if name.startswith("sparse_xmc") and name != "sparse_xmc_deterministic":
                        mode = "backward_input" if point.mode == "full" else point.mode
                        own = (
                            mode,
                            point.K,
                            point.G,
                            point.dtype,
                            (point.B - 1).bit_length(),
                            (point.L - 1).bit_length(),
                        )
                        assert (name, *own) in kinds
    assert (tuned[0][1].L, tuned[0][1].K) == (670_091, 64)


def test_measured_rates_are_kept_and_predict_the_ways(monkeypatch, tmp_path) -> None:
    pytest.importorskip("triton")
    from bench import atomics
    from sparse_xmc.ops.triton_kernels import input_gradient, tuning

    monkeypatch.setenv("SPARSE_XMC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Test GPU")
    atomics.remember("Test GPU", 1e15, 2e12)
    cuda = torch.device("cuda", 0)
    assert input_gradient.rates(cuda)[:2] == (1e15, 2e12)
    lines = atomics.ways(cuda)
    assert "additions=1000000000000000.0" in lines[0] and lines[2].startswith("L=670091 K=32: atomic 0.00 ms")
    tuning.forget()
