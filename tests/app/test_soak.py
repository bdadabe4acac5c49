"""A few rounds of the soak test; ``make soak`` goes on for hours."""

import pytest

from tests.conftest import INTERPRETING
from tests.soak import soak

pytest.importorskip("sklearn")
pytestmark = pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")


def test_rounds_of_killed_and_resumed_runs_hold_no_more_handles():
    rounds, first, last = soak(600, 4)
    assert rounds == 4 and last[1:] <= first[1:], (first, last)
