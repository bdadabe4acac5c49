"""Clock, interleaving, memory and roofline counts."""

import subprocess
import sys
import time

import pytest

from bench.environment import REPOSITORY, command
from bench.measure import Budget, Timing, interleaved
from bench.point import MODES, Point
from bench.problem import Problem
from bench.providers import get_provider
from bench.roofline import floor


def test_quantiles() -> None:
    timing = Timing.of([1.0, 2.0, 3.0, 4.0, 5.0, 100.0])
    assert timing.p50_ms == pytest.approx(3.5) and timing.samples == 6
    assert timing.p20_ms == pytest.approx(2.0) and timing.p80_ms == pytest.approx(5.0)


def test_samples_of_a_fast_variant_are_spread_over_the_rounds_of_a_slow_one(monkeypatch) -> None:
    calls, now = [], [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def variant(name, seconds):
        def call():
            calls.append(name)
            now[0] += seconds

        return call

    budget = Budget(seconds=0.05, warmup_seconds=0.0, min_samples=3, max_samples=8)
    timings = interleaved({"a": variant("a", 0.04), "b": variant("b", 0.001)}, "cpu", budget)
    assert "".join(calls) == "ab" + "abbb" + "abbbb"
    assert timings["a"].p50_ms == pytest.approx(40) and timings["b"].p50_ms == pytest.approx(1)


def test_one_sample_of_each_where_no_more_is_asked_for() -> None:
    timings = interleaved({"a": lambda: None, "b": lambda: None}, "cpu", Budget(1.0, 0.0, 1, 1))
    assert [timing.samples for timing in timings.values()] == [1, 1]


PEAK = """
import torch
from bench import memory

def call():
    torch.ones(64 << 18).sum()  # dies at once
    return torch.ones(64 << 18) + 1  # two at the same time

memory.return_memory_at_once()
call()
print(memory.peak_growth(call, "cpu"))
"""


def test_peak_growth_sees_what_lives_and_what_died() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == pytest.approx(2 * 64 << 20, rel=0.1)


@pytest.mark.parametrize("mode", [m for m in MODES if m != "rewire"])
def test_counted_bytes_are_those_of_the_tensors_touched(mode: str) -> None:
    point = Point(mode, 500, D=64, K=8, G=4, B=6)
    problem = Problem(point)
    case = get_provider("sparse_xmc").build(point, problem)
    produced = case.run()
    x, weight, indices = problem.x.nbytes, problem.weight.nbytes, problem.indices.nbytes
    outputs = {name: sum(t.nbytes for t in (v if isinstance(v, list) else [v])) for name, v in produced.items()}
    bias = 0 if problem.bias is None else problem.bias.nbytes
    positives = problem.targets.col_indices().nbytes + problem.positive_rows.nbytes
    touched = {
        "forward": lambda: x + weight + indices + outputs["y"],
        "backward_input": lambda: problem.dy.nbytes + weight + indices + outputs["dx"],
        "backward_weight": lambda: problem.dy.nbytes + x + indices + outputs["dw"],
        "full": lambda: (x + weight + indices + outputs["y"]) + (problem.dy.nbytes + weight + indices + outputs["dx"])
        + (problem.dy.nbytes + x + indices + outputs["dw"]),
        "step": lambda: x + weight + bias + indices + outputs["dx"] + outputs["weight"] + positives,
        "softmax": lambda: x + weight + bias + indices + outputs["dx"] + outputs["dw"] + problem.classes.nbytes,
        "topk": lambda: x + weight + bias + indices + outputs["scores"] + outputs["labels"],
    }  # fmt: skip
    assert floor(point, case.weights).bytes == touched[mode]()
    assert floor(point, case.weights).flops == 2 * 6 * 500 * 8 * (3 if mode in ("full", "step", "softmax") else 1)


def test_the_command_of_a_row_names_no_folder_of_the_machine(monkeypatch, tmp_path):
    arguments = ["run", "--data", str(tmp_path / "sets"), "--out", str(REPOSITORY / "reports"), "--only", "a/b"]
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    assert command().split()[3:] == ["run", "--data", "sets", "--out", "reports", "--only", "a/b"]
