"""memory_report: arithmetic, and the fused prediction against the measured peak of a fresh process."""

import subprocess
import sys

import pytest
import torch

from sparse_xmc.models import FixedFanInLinear, memory_report

MEASURE = """
import re, torch
from pathlib import Path
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim.fused import FusedSGD

def train(L):
    head = FixedFanInLinear(768, L, 32, seed=0)
    head.fuse_optimizer(FusedSGD(0.1))
    targets = torch.sparse_csr_tensor(torch.arange(65), torch.arange(64), torch.ones(64), (64, L))
    head.step(torch.randn(64, 768), targets)

def kib(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

train(1000)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident
before = kib("VmRSS")
train(1_000_000)
print(1024 * (kib("VmHWM") - before))
"""


def test_parameters_equal_those_of_the_layer():
    report = memory_report(1001, 40, 8, group_size=16, dtype=torch.bfloat16)
    parts = report.fused.components
    layer = FixedFanInLinear(40, 1001, 8, group_size=16, dtype=torch.bfloat16)
    assert parts["weights"] + parts["indices"] + parts["bias"] == layer.num_bytes()


def test_state_of_the_optimizers():
    L, D, K = 1000, 64, 8
    state = {
        name: [getattr(memory_report(L, D, K, optimizer=name), head).components["optimizer state"] for head in heads]
        for heads in [("fused", "unfused", "dense")]
        for name in ("sgd", "momentum", "adagrad", "adam")
    }
    assert state["sgd"] == [0, 0, 0]
    assert state["momentum"] == [4 * L * (K + 1), 4 * L * (K + 1), 4 * L * (D + 1)]
    assert state["adagrad"] == [4 * L * 2, 4 * L * (K + 1), 4 * L * (D + 1)]
    assert state["adam"] == [4 * L * 2, 2 * 4 * L * (K + 1), 2 * 4 * L * (D + 1)]
    without = memory_report(L, D, K, optimizer="adagrad", bias=False).fused.components["optimizer state"]
    assert without == 4 * L


def test_table_shows_totals():
    report = memory_report(2_812_281, 768, 32)
    lines = str(report).splitlines()
    assert "L=2,812,281" in lines[0]
    assert lines[-1].split()[0] == "total" and f"{report.dense.total / 2**30:.3f}" in lines[-1]
    assert report.fused.total < report.unfused.total < report.dense.total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_prediction_is_near_the_measured_peak():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    measured = int(done.stdout)
    predicted = memory_report(1_000_000, 768, 32, batch_size=64, positives_per_row=1).fused.total
    assert 0.85 * predicted < measured < 1.25 * predicted


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((10, 4, 5), {}, ValueError, "fan_in must not exceed in_features"),
        ((0, 4, 2), {}, ValueError, "out_features must be at least 1, got 0"),
        ((10, 4, 2), dict(optimizer="lion"), ValueError, "optimizer must be one of .*'lion'"),
        ((10, 4, 2), dict(dtype=torch.int8), TypeError, "dtype must be a floating-point"),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        memory_report(*arguments, **options)
