"""Ways of the fused head to the input gradient: each agrees with float64, the deterministic ones with themselves."""

import pytest
import torch

from sparse_xmc import ops
from tests.conftest import INTERPRETING

if not INTERPRETING:
    pytest.skip("needs the interpreter", allow_module_level=True)

from sparse_xmc.ops._contract import Layer, Objective, Scaling
from sparse_xmc.ops._targets import sorted_positives
from sparse_xmc.ops.triton_kernels import input_gradient, linear, loss
from sparse_xmc.ops.update import Update

B, L, D, K = 21, 53, 30, 12
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def problem(dtype: torch.dtype, G: int):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(B, D).to(dtype), torch.randn(L, K).to(dtype), torch.randn(L).to(dtype)
    indices = ops.init_indices(-(-L // G), D, K, seed=1, device="cpu")
    positives = torch.rand(B, L) < 0.1
    return x, Layer(weight, indices, bias, G), positives


def dense_weight(layer: Layer) -> torch.Tensor:
    dense = torch.zeros(L, D, dtype=torch.float64)
    return dense.scatter_(
        1, layer.indices.long().repeat_interleave(layer.group_size, 0)[:L], layer.weight.double()
    )  # fmt: skip


def expected(x: torch.Tensor, layer: Layer, positives: torch.Tensor) -> torch.Tensor:
    dense = dense_weight(layer)
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
@pytest.mark.parametrize(
    ("way", "G"), [("atomic", 1), ("private", 1), ("rows", 1), ("dense", 1), ("atomic", 4), ("private", 4)]
)
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


@pytest.mark.parametrize(("way", "G"), [("rows", 1), ("dense", 1), ("private", 4)])
def test_deterministic_ways_give_the_same_bits_twice(way: str, G: int) -> None:
    arguments = problem(torch.float32, G)
    with input_gradient.forced(way):
        assert torch.equal(step(*arguments)[0], step(*arguments)[0])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_dense_tiles_serve_the_unfused_layer(dtype: torch.dtype, monkeypatch) -> None:
    """Several chunks of labels, the last one short, and a gradient that is a view of another matrix."""
    monkeypatch.setattr(input_gradient, "CHUNK_BYTES", 64 * (32 * 4 + D * 4))
    torch.manual_seed(1)
    labels = 150
    weight, dy = torch.randn(labels, K).to(dtype), torch.randn(labels, B).to(dtype).t()
    indices = ops.init_indices(labels, D, K, seed=2, device="cpu")
    dense = torch.zeros(labels, D, dtype=torch.float64).scatter_(1, indices.long(), weight.double())
    truth = dy.double() @ dense
    with input_gradient.forced("dense"):
        found = linear.backward_input(dy, weight, indices, D, 1, False)
        assert torch.equal(found, linear.backward_input(dy, weight, indices, D, 1, False))
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=TOLERANCE[dtype] * float(truth.abs().max()))


def headline(L: int = 670_091, D: int = 768, K: int = 32, B: int = 128, x: torch.dtype = torch.bfloat16):
    return input_gradient.Problem(B, L, D, K, x, x)


def test_predicted_times_order_the_ways() -> None:
    """The assumed rates: atomics lose where labels are many, a scratch where features are, launches where labels are few."""
    taken = {
        "headline": input_gradient.ways(headline(), 1, torch.device("cpu")),
        "few labels": input_gradient.ways(headline(L=1000), 1, torch.device("cpu")),
        "many features": input_gradient.ways(headline(D=30_000), 1, torch.device("cpu")),
        "float64": input_gradient.ways(headline(x=torch.float64), 1, torch.device("cpu")),
        "no rows": input_gradient.ways(headline(B=0), 1, torch.device("cpu")),
        "groups": input_gradient.ways(headline(), 32, torch.device("cpu")),
    }
    assert taken == {
        "headline": ["dense", "atomic"],
        "few labels": ["atomic", "dense"],
        "many features": ["atomic"],
        "float64": ["atomic"],
        "no rows": ["atomic"],
        "groups": ["atomic"],
    }
    fast_atomics = input_gradient.Rates(additions=1e14)
    assert next(iter(input_gradient.seconds(headline(), fast_atomics))) == "atomic"
    no_launches = input_gradient.Rates(launch=0.0)
    assert input_gradient.seconds(headline(D=16_384), no_launches)["rows"] < 1.5e-3


def test_measured_rates_take_the_place_of_assumed_ones(monkeypatch, tmp_path) -> None:
    from sparse_xmc.ops.triton_kernels import tuning

    monkeypatch.setenv("SPARSE_XMC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    tuning.forget()
    device = torch.device("cuda", 0)
    assert input_gradient.rates(device) == input_gradient.Rates()
    input_gradient.remember_rates("Test GPU", 1e14, 4e12)
    tuning.forget()  # as a new process would be
    assert input_gradient.rates(device) == input_gradient.Rates(additions=1e14, l2_bytes=4e12)
    assert input_gradient.ways(headline(), 1, device) == ["atomic", "dense"]
    tuning.forget()


def test_deterministic_algorithms_take_no_atomics() -> None:
    device = torch.device("cpu")
    torch.use_deterministic_algorithms(True)
    try:
        assert input_gradient.ways(headline(), 1, device) == ["rows"]
        assert input_gradient.ways(headline(), 2, device) == ["private"]
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_way_that_can_not_serve_a_call_is_refused() -> None:
    for way in ("rows", "dense"):
        with pytest.raises(ValueError, match=f"'{way}' takes a group size of 1, got 4"), input_gradient.forced(way):
            step(*problem(torch.float32, 4))
    message = "no float64, got 21 rows, 30 features and torch.float64"
    with pytest.raises(ValueError, match=message), input_gradient.forced("dense"):
        step(*problem(torch.float64, 1))
    with pytest.raises(ValueError, match="'fastest'"), input_gradient.forced("fastest"):
        pass
