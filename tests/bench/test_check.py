"""The gate: every provider passes it in every mode that it claims; planted wrong and lazy ones do not."""

import pytest
import torch

from bench.check import UnequalWork, Wrong, check_provider
from bench.point import Point
from bench.provider import Case
from bench.providers import get_provider, providers
from bench.providers.dense import Dense
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="benchmarks never run in the interpreter")

SLOW_TO_COMPILE = {"dense_compiled"}
CASES = [(name, mode) for name, provider in providers().items() for mode in provider.modes]


@pytest.mark.parametrize(
    ("name", "mode"),
    [pytest.param(n, m, marks=[pytest.mark.slow] if n in SLOW_TO_COMPILE else []) for n, m in CASES],
)
@pytest.mark.parametrize("G", [1, 32])
def test_every_provider_is_right(name: str, mode: str, G: int) -> None:
    provider, point = get_provider(name), Point(mode, 1000, D=128, K=16, G=G, B=8)
    reason = provider.unsupported(point)
    if reason is not None:
        pytest.skip(reason)
    check_provider(provider, point)


@pytest.mark.parametrize("mode", ["forward", "full", "step", "topk"])
def test_bfloat16_passes_where_it_is_supported(mode: str) -> None:
    for name in ("sparse_xmc", "dense", "bottleneck"):
        check_provider(get_provider(name), Point(mode, 1000, D=128, K=16, B=8, dtype="bfloat16"))


class _Planted(Dense):
    """A dense layer that reports ``spoil(result)``."""

    name = "planted"

    def __init__(self, spoil) -> None:
        self.spoil = spoil

    def build(self, point, problem) -> Case:
        case = super().build(point, problem)
        return Case(lambda: self.spoil(case.run()), case.weights)


def _off_by_a_bit(produced):
    dx = produced["dx"].clone()
    dx[0, 0] += 0.01 * dx.abs().max()
    return {**produced, "dx": dx}


@pytest.mark.parametrize(
    ("spoil", "refusal"),
    [
        pytest.param(_off_by_a_bit, Wrong, id="one element of dx"),
        pytest.param(lambda r: {**r, "y": torch.full_like(r["y"], float("nan"))}, Wrong, id="nan"),
        pytest.param(lambda r: {**r, "dw": [2 * r["dw"][0]]}, Wrong, id="scaled dw"),
        pytest.param(lambda r: {k: v for k, v in r.items() if k != "dw"}, UnequalWork, id="no dw"),
        pytest.param(lambda r: {**r, "dx": r["dx"][:1]}, UnequalWork, id="part of dx"),
        pytest.param(lambda r: {**r, "loss": r["y"].sum()}, UnequalWork, id="other work"),
    ],
)
def test_planted_provider_is_refused(spoil, refusal) -> None:
    with pytest.raises(refusal):
        check_provider(_Planted(spoil), Point("full", 500, D=32, K=4, B=8))


def test_a_step_that_forgets_the_update_is_refused() -> None:
    class Frozen(Dense):
        def build(self, point, problem) -> Case:
            case = super().build(point, problem)
            before = [t.detach().clone() for t in case.weights.parameters()]
            return Case(lambda: {**case.run(), "weight": before}, case.weights)

    with pytest.raises(Wrong, match="weight"):
        check_provider(Frozen(), Point("step", 500, D=32, K=4, B=8))
