"""pytest-benchmark cases of the three kernels: ``pytest tests/bench/test_kernels.py --benchmark-only``."""

import pytest
import torch

from bench.point import Point
from bench.problem import Problem
from bench.providers import get_provider

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("mode", ["forward", "backward_input", "backward_weight"])
@pytest.mark.parametrize("G", [1, 32])
def test_kernel(benchmark, mode: str, G: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    point = Point(mode, 131_073, G=G, device=device)
    case = get_provider("sparse_xmc").build(point, Problem(point))

    def call() -> None:
        case.run()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark(call)
