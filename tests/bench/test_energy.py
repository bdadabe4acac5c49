"""Energy per call from a counter of joules."""

import itertools

import pytest

from bench import energy
from bench.measure import Budget
from bench.point import Point
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


@pytest.mark.parametrize(("known", "asked"), [(True, True), (False, True), (True, False)])
def test_rows_carry_energy_where_it_is_asked_for_and_the_driver_tells_it(monkeypatch, known, asked):
    counter = itertools.count()
    monkeypatch.setattr(energy, "meter", lambda device: (lambda: float(next(counter))) if known else None)
    rows = []
    point = Point("forward", 32, D=16, K=4, B=2)
    execute(Task("time", ("sparse_xmc",), point, Budget(0.0, 0.0, 1, 1, 1e-9 * asked)), rows.append)
    assert rows[0]["status"] == "ok", rows[0]
    assert ("joules" in rows[0]) is (known and asked)


def _zone(folder, directory, name, microjoules):
    (folder / directory).mkdir()
    (folder / directory / "name").write_text(f"{name}\n")
    (folder / directory / "energy_uj").write_text(f"{microjoules}\n")


def test_unreadable_counters_are_no_meter(monkeypatch, tmp_path):
    monkeypatch.setattr(energy, "_RAPL", str(tmp_path / "intel-rapl:*"))
    assert energy.meter("cpu") is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert energy.meter("cpu") is None


def test_every_socket_counts_once(monkeypatch, tmp_path):
    _zone(tmp_path, "intel-rapl:0", "package-0", 2_500_000)
    _zone(tmp_path, "intel-rapl:0:0", "core", 2_000_000)
    _zone(tmp_path, "intel-rapl:1", "package-1", 1_000_000)
    _zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    monkeypatch.setattr(energy, "_RAPL", str(tmp_path / "intel-rapl:*"))
    read = energy.meter("cpu")
    assert read is not None and read() == 3.5
