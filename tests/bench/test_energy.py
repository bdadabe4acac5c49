"""Energy per call from a counter of joules."""

import itertools

import pytest

from bench import energy
from bench.measure import Budget
from bench.registry import Point
from bench.worker import Task, execute


def test_mean_over_the_calls():
    made = []
    assert energy.joules_per_call(lambda: made.append(1), "cpu", lambda: 0.25 * len(made), 0.01) == pytest.approx(0.25)
    assert len(made) > 1


def test_slow_call_is_made_once():
    made = []
    energy.joules_per_call(lambda: made.append(1), "cpu", lambda: 1.0, 0.0)
    assert made == [1]


def test_counter_that_ran_over_gives_no_figure():
    readings = iter([10.0, 2.0])
    assert energy.joules_per_call(lambda: None, "cpu", lambda: next(readings), 0.0) is None


@pytest.mark.parametrize("known", [True, False])
def test_rows_carry_energy_where_the_driver_tells_it(monkeypatch, known):
    counter = itertools.count()
    monkeypatch.setattr(energy, "meter", lambda device: (lambda: float(next(counter))) if known else None)
    monkeypatch.setattr(energy, "_SECONDS", 0.0)
    rows = []
    point = Point("forward", 32, D=16, K=4, B=2)
    execute(Task("time", ("sparse_xmc",), point, Budget(0.0, 0.0, 1, 1)), rows.append)
    assert rows[0]["status"] == "ok", rows[0]
    assert ("joules" in rows[0]) is known


def test_unreadable_counters_are_no_meter(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "_RAPL", str(tmp_path / "none"))
    assert energy.meter("cpu") is None
    (tmp_path / "energy_uj").write_text("2500000")
    monkeypatch.setattr(energy, "_RAPL", str(tmp_path / "energy_uj"))
    read = energy.meter("cpu")
    assert read is not None and read() == 2.5
