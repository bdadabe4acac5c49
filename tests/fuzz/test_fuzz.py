"""A bounded, repeatable part of the fuzzers; ``make fuzz`` goes on from there."""

import warnings
from collections import Counter

import pytest

from tests.conftest import INTERPRETING
from tests.fuzz.harness import FuzzFailure, fuzz, targets
from tests.fuzz.options import corpus, tried

pytestmark = pytest.mark.skipif(INTERPRETING, reason="runs Numba kernels only")

# inputs of targets that train or load a whole run for each
_FEW = {"options": 50, "run flips": 40, "stage flips": 40, "direct run flips": 60, "hostile direct model": 60}


@pytest.mark.parametrize("name", targets())
def test_mutated_inputs(name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes: Counter[str] = Counter()
        count = _FEW.get(name, 300)
        assert fuzz(name, targets()[name], count, outcomes=outcomes) == count
    assert name != "options" or {"trained", "refused", "argument"} <= outcomes.keys()


@pytest.mark.parametrize("flags", corpus(), ids=" ".join)
def test_sets_of_options_that_once_went_wrong(flags, tmp_path):
    assert tried(flags, tmp_path) in ("trained", "refused", "stopped", "argument")


def test_failures_say_how_to_repeat_them():
    def broken(rng, folder):
        if rng.random() < 0.2:
            raise KeyError("x")

    with pytest.raises(
        FuzzFailure, match=r"KeyError: 'x'\npython -m tests.fuzz 'broken' --first \d+ --count 1 --seed 3"
    ):
        fuzz("broken", broken, 100, seed=3)
