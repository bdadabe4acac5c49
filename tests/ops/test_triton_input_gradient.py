"""Ways of the fused head to the input gradient: each agrees with float64, the deterministic ones with themselves."""

import pytest
import torch

from sparse_xmc import ops
from tests.conftest import INTERPRETING

if not INTERPRETING:
    pytest.skip("needs the interpreter", allow_module_level=True)

from sparse_xmc.ops._contract import Layer, Objective, Scaling
from sparse_xmc.ops._targets import sorted_positives
from sparse_xmc.ops.triton_kernels import input_gradient, loss
from sparse_xmc.ops.update import Update

B, L, D, K = 21, 53, 30, 12
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def problem(dtype: torch.dtype, G: int):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(B, D).to(dtype), torch.randn(L, K).to(dtype), torch.randn(L).to(dtype)
    indices = ops.init_indices(-(-L // G), D, K, seed=1, device="cpu")
    positives = torch.rand(B, L) < 0.1
    return x, Layer(weight, indices, bias, G), positives


def expected(x: torch.Tensor, layer: Layer, positives: torch.Tensor) -> torch.Tensor:
    dense = torch.zeros(L, D, dtype=torch.float64)
    dense.scatter_(1, layer.indices.long().repeat_interleave(layer.group_size, 0)[:L], layer.weight.double())
    z = x.double() @ dense.t() + layer.bias.double()
    return (z.sigmoid() - positives.double()) @ dense / B


def step(x: torch.Tensor, layer: Layer, positives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(input gradient, new weights) of one update."""
    own = layer._replace(weight=layer.weight.clone(), bias=layer.bias.clone())
    sorted_ = sorted_positives(positives.to_sparse_csr(), B, L)
    _, dx = loss.loss_step_(
        x, own, sorted_, Objective(), Scaling(float(B)), Update(lr=0.5, seed=3), need_loss=False, need_x=True
    )
    return dx, own.weight


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("way", "G"), [("atomic", 1), ("private", 1), ("rows", 1), ("atomic", 4), ("private", 4)])
def test_agrees_with_float64_at_the_old_weights(way: str, G: int, dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(input_gradient, "CHUNK_BYTES", 20 * 32 * 4)  # several chunks of labels
    arguments = problem(dtype, G)
    truth = expected(*arguments)
    with input_gradient.forced(way):
        dx, weight = step(*arguments)
    bound = TOLERANCE[dtype] * float(truth.abs().max())
    torch.testing.assert_close(dx.double(), truth, rtol=0, atol=bound)
    with input_gradient.forced("atomic"):
        assert torch.equal(weight, step(*arguments)[1]), "the update depends on the way of the input gradient"


@pytest.mark.parametrize(("way", "G"), [("rows", 1), ("private", 4)])
def test_deterministic_ways_give_the_same_bits_twice(way: str, G: int) -> None:
    arguments = problem(torch.float32, G)
    with input_gradient.forced(way):
        assert torch.equal(step(*arguments)[0], step(*arguments)[0])


def test_deterministic_algorithms_take_no_atomics() -> None:
    assert input_gradient.way(1, 1, 1, 1, 1, torch.float32) == "atomic"
    torch.use_deterministic_algorithms(True)
    try:
        assert input_gradient.way(1, 1, 1, 1, 1, torch.float32) == "rows"
        assert input_gradient.way(1, 1, 1, 1, 2, torch.float32) == "private"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_way_that_can_not_serve_a_call_is_refused() -> None:
    with pytest.raises(ValueError, match="'rows' takes a group size of 1, got 4"), input_gradient.forced("rows"):
        step(*problem(torch.float32, 4))
    with pytest.raises(ValueError, match="'fastest'"), input_gradient.forced("fastest"):
        pass
