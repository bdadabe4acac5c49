"""The memory study's heads train, and what they add at their peak is what was allocated."""

import sys

import pytest

from bench.studies import softmax_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux tells it")


@pytest.mark.parametrize("head", softmax_memory.HEADS)
def test_every_head_runs(head):
    softmax_memory.train_once(head, 300, 40, 8)


def test_the_peak_of_a_dense_head_holds_weights_and_gradients():
    peak = softmax_memory.measure("dense", 60_000, 128, 8)
    assert peak > 2 * 4 * 60_000 * 128
