"""RewireSchedule: when, how much, with which seed, and after a resume."""

import math

import pytest
import torch

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.topology.schedule import RewireSchedule


class Recorder:
    """Stands for a layer: remembers what it is asked."""

    def __init__(self):
        self.calls = []

    def rewire_(self, **options):
        self.calls.append(options)
        return torch.tensor(len(self.calls))


def run(schedule, steps):
    return [i for i in range(1, steps + 1) if schedule.step() is not None]


def test_steps_between_start_and_end():
    layer = Recorder()
    schedule = RewireSchedule(layer, 100, fraction=0.2, interval=10, start=0.2, end=0.66, scope="global")
    assert run(schedule, 100) == [30, 40, 50, 60]
    assert all(call["scope"] == "global" and "threshold" not in call for call in layer.calls)


@pytest.mark.parametrize("name", ["fraction", "threshold"])
@pytest.mark.parametrize(
    ("decay", "middle", "last"), [("constant", 0.4, 0.4), ("linear", 0.25, 0.1), ("cosine", 0.25, 0.1)]
)
def test_decay_of_fraction_and_threshold(name, decay, middle, last):
    layer = Recorder()
    schedule = RewireSchedule(layer, 100, interval=1, end=0.5, decay=decay, final=0.1, **{name: 0.4})
    run(schedule, 100)
    amounts = [call[name] for call in layer.calls]
    assert len(amounts) == 50
    assert math.isclose(amounts[24], middle) and math.isclose(amounts[-1], last)
    assert all(a >= b for a, b in zip(amounts, amounts[1:], strict=False))


def test_seeds_differ_and_depend_on_the_step_only():
    schedule = RewireSchedule(Recorder(), 1000, fraction=0.2, seed=3)
    seeds = [schedule.seed_at(step) for step in range(1000)]
    assert len(set(seeds)) == 1000 and all(0 <= seed < 1 << 63 for seed in seeds)
    assert schedule.seed_at(5) == RewireSchedule(Recorder(), 10, fraction=0.1, seed=3).seed_at(5)


@pytest.mark.parametrize("callback", [False, True])
def test_resumed_run_equals_an_unbroken_one(callback):
    def training(schedule, first, last):
        for step in range(first, last + 1):
            schedule(step) if callback else schedule.step()

    def fresh():
        layer = FixedFanInLinear(30, 21, 6, seed=0)
        return layer, RewireSchedule(layer, 40, fraction=0.5, interval=3, end=1.0, init="uniform")

    layer, schedule = fresh()
    training(schedule, 1, 40)
    part, first = fresh()
    training(first, 1, 17)
    resumed, second = fresh()
    resumed.load_state_dict(part.state_dict())
    second.load_state_dict(first.state_dict())
    training(second, 18, 40)
    assert torch.equal(layer.indices, resumed.indices) and torch.equal(layer.weight, resumed.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(), "exactly one of fraction and threshold"),
        (dict(fraction=0.1, threshold=0.1), "exactly one of fraction and threshold"),
        (dict(fraction=1.5), r"fraction must lie in \[0, 1\]"),
        (dict(threshold=float("nan")), "threshold must not be negative or NaN"),
        (dict(fraction=0.1, interval=0), "interval must be at least 1"),
        (dict(fraction=0.1, start=0.7, end=0.5), "start and end must satisfy"),
        (dict(fraction=0.1, decay="step"), "decay must be one of"),
        (dict(fraction=0.1, final=0.2), "final must lie between 0 and the initial amount"),
    ],
)
def test_bad_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        RewireSchedule(Recorder(), 100, **options)
