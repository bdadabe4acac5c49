"""A bounded part of the fuzzers of artefacts."""

import random
import warnings

import pytest

from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
COUNTS = {"model flips": 60, "run flips": 20, "sharded checkpoint flips": 150, "hostile model": 100}


@pytest.mark.parametrize("name", COUNTS)
def test_damaged_and_hostile_artefacts(tmp_path, name):
    from tests.fuzz.artefacts import TARGETS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(COUNTS[name]):
            folder = tmp_path / str(i)
            folder.mkdir()
            try:
                TARGETS[name](random.Random(f"suite {name} {i}"), folder)
            except BaseException as error:
                raise AssertionError(f"input {i} of {name}") from error
