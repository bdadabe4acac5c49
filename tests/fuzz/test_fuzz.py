"""A bounded, repeatable part of the fuzzers; ``make fuzz`` goes on from there."""

import warnings

import pytest

from tests.conftest import INTERPRETING
from tests.fuzz.harness import FuzzFailure, fuzz, targets

pytestmark = pytest.mark.skipif(INTERPRETING, reason="runs Numba kernels only")


@pytest.mark.parametrize("name", targets())
def test_mutated_inputs(name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fuzz(name, targets()[name], 300) == 300


def test_failures_say_how_to_repeat_them():
    def broken(rng, folder):
        if rng.random() < 0.2:
            raise KeyError("x")

    with pytest.raises(
        FuzzFailure, match=r"KeyError: 'x'\npython -m tests.fuzz 'broken' --first \d+ --count 1 --seed 3"
    ):
        fuzz("broken", broken, 100, seed=3)
