"""A speed-up exists only between checked results of equal work; figures and tables come from rows alone."""

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from bench.plotting import plot_folder
from bench.report import IncomparableRows, speedup, write_table
from bench.rows import RowFile

WORK = {"forward": ["y"], "full": ["dw", "dx", "y"], "step": ["dx", "loss", "weight"]}


def _row(provider: str, milliseconds: float, mode: str = "full", L: int = 1000, **more):
    environment = {
        "commit": "c0ffee00",
        "dirty": False,
        "cpu": "a CPU",
        "cores": 2,
        "torch": "2",
        "command": "bench run",
    }
    return {
        "kind": "time", "run": "r", "provider": provider, "mode": mode, "L": L, "D": 64, "K": 8, "G": 1, "B": 8,
        "dtype": "float32", "device": "cpu", "status": "ok", "reason": None, "checked": True, "work": WORK[mode],
        "p20_ms": 0.9 * milliseconds, "p50_ms": milliseconds, "p80_ms": 1.2 * milliseconds, "samples": 5,
        "flops": 10**6, "floor_bytes": 10**5, "persistent_bytes": 10**5, **environment, **more,
    }  # fmt: skip


def test_speedup() -> None:
    assert speedup(_row("sparse_xmc", 2.0), _row("dense", 20.0)) == pytest.approx(10.0)


@pytest.mark.parametrize(
    "difference",
    [
        {"checked": False},
        {"checked": None},
        {"status": "error"},
        {"work": ["dx", "y"]},
        {"mode": "forward", "work": ["y"]},
        {"L": 999},
        {"dtype": "bfloat16"},
        {"run": "another day"},
    ],
)
def test_no_speedup_for_wrong_or_unequal_work(difference) -> None:
    with pytest.raises(IncomparableRows):
        speedup(_row("sparse_xmc", 2.0) | difference, _row("dense", 20.0))
    with pytest.raises(IncomparableRows):
        speedup(_row("sparse_xmc", 2.0), _row("dense", 20.0) | difference)


def test_no_speedup_when_both_did_less() -> None:
    lazy = {"work": ["y"]}
    with pytest.raises(IncomparableRows, match="whole work"):
        speedup(_row("sparse_xmc", 2.0) | lazy, _row("dense", 20.0) | lazy)


def test_figures_and_tables_from_rows(tmp_path) -> None:
    file = RowFile(tmp_path)
    for L in (1000, 2000, 4000):
        for provider, cost in (("sparse_xmc", 1.0), ("dense", 20.0), ("torch_csr", 5.0)):
            for mode in WORK:
                file.append(_row(provider, cost * L / 1000, mode, L))
            lost = provider == "dense" and L == 4000
            memory = {"kind": "memory", "peak_bytes": int(cost) * L * 400, "status": "oom" if lost else "ok"}
            file.append(_row(provider, 1.0, "step", L) | memory | ({"reason": "predicted: too large"} if lost else {}))
    for K in (4, 8, 16):
        file.append(_row("sparse_xmc", float(K)) | {"K": K})
    file.append(_row("roof", 1.0, "forward") | {"kind": "roof", "bandwidth": 1e10, "rate": 1e11})
    names = {path.name for path in plot_folder(tmp_path)}
    assert names == {
        "headline.png", "step_time_vs_labels.png", "peak_memory_vs_labels.png", "throughput_vs_labels.png",
        "time_vs_fan_in.png", "roofline.png",
    }  # fmt: skip
    text = write_table(tmp_path).read_text()
    assert "20.0x" in text and "oom: predicted: too large" in text and "c0ffee00" in text and "`bench run`" in text
