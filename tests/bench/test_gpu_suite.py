"""The unattended suite: what its parts need outside a GPU, and the report made of its folder."""

import json
import shutil
import subprocess
import sys

import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from bench import end_to_end, gpu_report
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
    assert folder.name == "nvidia-test-1" and (folder / "figures" / "headline.png").exists()
    assert "12 passed" in text and "2.00x" in text and "NVIDIA Test-1" in text
    index = regenerate(reports).read_text()
    assert "nvidia-test-1/figures/headline.png" in index and "No GPU has been measured" not in index


def test_rows_of_two_gpus_do_not_mix() -> None:
    with pytest.raises(ValueError, match="several GPUs"):
        gpu_report.name_of([{"gpu": "A"}, {"gpu": "B"}])


def test_tuning_covers_what_providers_support() -> None:
    for name, point in points(small=False):
        assert point.mode in get_provider(name).modes and isinstance(point, Point)


def _suite(*arguments, python=sys.executable):
    script = [shutil.which("bash") or "bash", str(REPOSITORY / "bench" / "gpu_suite.sh"), *map(str, arguments)]
    return subprocess.run(script, capture_output=True, text=True, env={"PYTHON": str(python), "PATH": "/usr/bin:/bin"})


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
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *"-c import torch"*) echo cpu;; *profile*) exit 3;; esac\n')
    python.chmod(0o755)
    done = _suite("--smoke", tmp_path / "out", python=python)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[-1].endswith("to repeat one): profile ")
    assert "table" in lines[-2] and (tmp_path / "out" / "done" / "profile").read_text() == "3\n"
