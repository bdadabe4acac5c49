"""8-bit weights: rounding, the kernels' decoding, and linear and top-k against the dense oracle of what they stand for."""

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.ops.linear import linear_forward
from sparse_xmc.ops.topk import topk_op
from tests import oracle
from tests.conftest import INTERPRETING

E4M3 = torch.float8_e4m3fn
SHAPES = [
    pytest.param(dict(B=5, L=70, D=30, K=7), id="plain"),
    pytest.param(dict(B=2, L=1, D=1, K=1), id="one-of-everything"),
    pytest.param(dict(B=3, L=53, D=40, K=24, G=20), id="short-last-group"),
    pytest.param(dict(B=3, L=53, D=40, K=24, G=20, dtype=torch.bfloat16), id="bfloat16-short-last-group"),
    pytest.param(dict(B=5, L=70, D=30, K=7, dtype=torch.bfloat16), id="bfloat16"),
    pytest.param(dict(B=4, L=70, D=70_000, K=3, index_dtype=torch.int32), id="int32-indices"),
    pytest.param(
        dict(B=8, L=2003, D=64, K=16, G=32), id="larger", marks=pytest.mark.skipif(INTERPRETING, reason="slow there")
    ),
]


def quantized_problem(**shape):
    """A problem whose weights are those of the 8-bit layer beside it: (problem, quantized, scale)."""
    problem = oracle.make_problem(**shape)
    sizes = torch.logspace(-4, 4, len(problem.weight), device=problem.weight.device)  # labels of very different scales
    quantized, scale = ops.quantize_weight(problem.weight.float() * sizes[:, None])
    return problem._replace(weight=ops.dequantize_weight(quantized, scale)), quantized, scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_rounding_is_to_nearest(dtype):
    weight = (
        torch.randn(300, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 300)[:, None]
    ).to(dtype)
    weight[::3] *= torch.logspace(0, -6, 33).to(dtype)  # down to e4m3's subnormal numbers and zero
    weight[7] = 0
    quantized, scale = ops.quantize_weight(weight)
    assert quantized.dtype == E4M3 and scale.dtype == torch.float32
    assert torch.equal(torch.frexp(scale).mantissa, torch.full((300,), 0.5))  # powers of two
    truth, got = weight.double(), ops.dequantize_weight(quantized, scale, torch.float64)
    assert bool(((got - truth).abs() <= torch.maximum(truth.abs() / 16, scale.double()[:, None] / 1024)).all())
    assert bool((quantized.float().abs().amax(1)[weight.abs().amax(1) > 0] >= 224).all())  # the whole range is used
    assert not got[7].any() and scale[7] == 1


def test_round_trip_is_exact():
    weight = torch.randn(200, 40, generator=torch.Generator().manual_seed(1)) * torch.logspace(-20, 20, 200)[:, None]
    once = ops.dequantize_weight(*ops.quantize_weight(weight))
    assert torch.equal(ops.dequantize_weight(*ops.quantize_weight(once)), once)
    assert torch.equal(ops.dequantize_weight(*ops.quantize_weight(weight), torch.bfloat16).float(), once)


def test_extreme_weights_neither_overflow_nor_become_nan():
    limit = torch.finfo(torch.float32)
    weight = torch.tensor(
        [[limit.max, -limit.max], [448.0, 449.0], [464.0, 480.0], [1e-45, 0.0], [limit.tiny, -limit.tiny]]
    )
    got = ops.dequantize_weight(*ops.quantize_weight(weight))
    assert bool(got.isfinite().all())
    assert got[1].tolist() == [448.0, 448.0] and got[2].tolist() == [448.0, 480.0]
    assert torch.equal(got[4], weight[4])


def test_every_code_is_decoded(device):
    """Label l has code l as its only weight."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)[:, None].view(E4M3)
    scale = torch.full((256,), 0.5, device=device)
    indices = torch.zeros(256, 1, dtype=torch.uint16, device=device)
    y = ops.fixed_fan_in_linear(torch.ones(1, 1, device=device), codes, indices, weight_scale=scale)
    torch.testing.assert_close(y.flatten(), codes.float().flatten() / 2, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_dequantized_layer(shape, device):
    problem, quantized, scale = quantized_problem(**shape, device=device)
    dtype = problem.x.dtype
    x, _, indices, bias, G = problem
    y = ops.fixed_fan_in_linear(x, quantized, indices, bias, group_size=G, weight_scale=scale)
    truth = oracle.linear(problem, torch.zeros_like(y)).y
    # labels differ in size by orders of magnitude: each is judged by its own
    size = x.shape[1] ** 0.5 * (truth.abs().amax(0) + 1)
    assert bool(((y.cpu().double() - truth).abs() <= torch.finfo(dtype).eps * size).all())
    k = min(4, len(scale))
    scores, labels = ops.fixed_fan_in_topk(x, quantized, indices, bias, k=k, group_size=G, weight_scale=scale)
    assert torch.equal(labels.cpu(), truth.topk(k).indices)
    assert torch.equal(scores.cpu(), y.cpu().gather(1, labels.cpu())) or dtype == torch.float32
    torch.testing.assert_close(scores.cpu().double(), truth.topk(k).values, rtol=16 * torch.finfo(dtype).eps, atol=0)


def test_without_bias_and_with_exclusions(device):
    problem, quantized, scale = quantized_problem(B=3, L=40, D=12, K=4, device=device)
    x, _, indices, bias, _ = problem
    y = ops.fixed_fan_in_linear(x, quantized, indices, weight_scale=scale)
    truth = oracle.linear(problem._replace(bias=torch.zeros_like(bias)), torch.zeros_like(y)).y
    torch.testing.assert_close(y.cpu().double(), truth, rtol=1e-5, atol=1e-5)
    best = truth.argmax(1)
    exclude = torch.sparse_csr_tensor(torch.arange(4), best, torch.ones(3), (3, 40), check_invariants=False).to(device)
    _, labels = ops.fixed_fan_in_topk(x, quantized, indices, k=1, exclude=exclude, weight_scale=scale)
    assert torch.equal(labels.cpu(), truth.topk(2).indices[:, 1:])


def test_opcheck_and_compile(device):
    (x, _, indices, bias, _), quantized, scale = quantized_problem(B=4, L=40, D=12, K=4, device=device)
    checks = ("test_autograd_registration", "test_faketensor")  # test_schema can't multiply float8
    torch.library.opcheck(linear_forward, (x, quantized, indices, bias, 1, scale), test_utils=checks)
    torch.library.opcheck(topk_op, (x, quantized, indices, bias, 3, 1, None, None, scale), test_utils=checks)

    def f(x):
        return ops.fixed_fan_in_linear(x, quantized, indices, bias, weight_scale=scale)

    torch._dynamo.reset()
    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


def test_gradients_are_refused():
    (x, _, indices, bias, _), quantized, scale = quantized_problem(B=4, L=40, D=12, K=4)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="8-bit weights serve inference only"):
        ops.fixed_fan_in_linear(x, quantized, indices, bias, weight_scale=scale)
    with torch.no_grad():
        ops.fixed_fan_in_linear(x, quantized, indices, bias, weight_scale=scale)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(weight_scale=None), TypeError, "weight must be float32.*got torch.float8_e4m3fn"),
        (dict(weight=torch.zeros(40, 4)), TypeError, "weight must be torch.float8_e4m3fn .* got torch.float32"),
        (dict(weight_scale=torch.ones(39)), ValueError, r"weight_scale \[out_features\], got \[40, 4\] and \[39\]"),
        (dict(weight_scale=torch.ones(40).half()), TypeError, "weight_scale torch.float32, .*float16"),
        (dict(weight_scale=torch.ones(40, device="meta")), ValueError, "weight_scale must be on the weight's device"),
        (dict(x=torch.zeros(3, 12, dtype=torch.float64)), TypeError, "x and weight must both be float64 or neither"),
    ],
)
@pytest.mark.parametrize("op", [ops.fixed_fan_in_linear, ops.fixed_fan_in_topk])
def test_bad_arguments(op, change, error, message):
    problem, quantized, scale = quantized_problem(B=3, L=40, D=12, K=4)
    arguments = dict(x=problem.x, weight=quantized, indices=problem.indices, weight_scale=scale)
    options = dict(k=2) if op is ops.fixed_fan_in_topk else {}
    with pytest.raises(error, match=message):
        op(**arguments | change, **options)


def test_bad_weights():
    with pytest.raises(ValueError, match="that of label 2 is not"):
        ops.quantize_weight(torch.tensor([[1.0], [2.0], [float("nan")]]))
    with pytest.raises(ValueError, match="that of label 0 is not"):
        ops.quantize_weight(torch.tensor([[1e300]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"weight must be \[out_features, fan_in\], got shape \[3\]"):
        ops.quantize_weight(torch.zeros(3))
    with pytest.raises(TypeError, match="weight must be torch.float8_e4m3fn"):
        ops.dequantize_weight(torch.zeros(3, 2), torch.ones(3))
