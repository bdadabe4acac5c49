"""Kernels beside ``nn.Linear``, by pytest-benchmark: ``pytest tests/bench/test_kernels.py --benchmark-only``.

Every group is one piece of work, by us and by the dense layer, in one run. ``conftest.py`` beside compares with the baselines
stored in ``reports/benchmarks``.
"""

import json
import subprocess
import sys

import pytest
import torch

from bench.environment import REPOSITORY
from bench.point import Point
from bench.problem import Problem
from bench.providers import get_provider

pytest.importorskip("pytest_benchmark")

LABELS = 131_073
CASES = [
    ("step", "sparse_xmc_fused"),
    ("step", "dense"),
    ("forward", "sparse_xmc"),
    ("forward", "dense"),
    ("backward_input", "sparse_xmc"),
    ("backward_input", "dense"),
    ("backward_weight", "sparse_xmc"),
    ("backward_weight", "dense"),
    ("topk", "sparse_xmc"),
    ("topk", "dense"),
    ("rewire", "sparse_xmc"),
]


@pytest.fixture
def poisoned_outputs() -> None:
    """Nothing: filling what kernels write would be timed with them."""


@pytest.mark.parametrize(("mode", "provider"), CASES)
def test_kernel(benchmark, mode: str, provider: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    point = Point(mode, LABELS, device=device)
    case = get_provider(provider).build(point, Problem(point))
    benchmark.group = f"{mode}, L={LABELS:,} D={point.D} K={point.K} B={point.B}"

    def call() -> None:
        case.run()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark(call)


def test_a_run_is_compared_with_the_stored_baselines() -> None:
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "test_kernel and rewire", "--benchmark-only"]
    quick = ["--benchmark-max-time=0.01", "--benchmark-min-rounds=1", "-p", "no:xdist"]
    done = subprocess.run([*command, *quick], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_kernel[rewire-sparse_xmc] (0001_cpu)" in done.stdout
    assert "test_kernel[rewire-sparse_xmc] (NOW)" in done.stdout


def test_baselines_hold_every_case_and_no_host() -> None:
    (file,) = (REPOSITORY / "reports" / "benchmarks").glob("*/*.json")
    stored = json.loads(file.read_text())
    assert {one["param"] for one in stored["benchmarks"]} == {f"{mode}-{provider}" for mode, provider in CASES}
    assert "node" not in stored["machine_info"]
