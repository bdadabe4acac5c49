"""fixed_fan_in_linear against the dense float64 oracle, on every back end."""

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.ops import reference
from sparse_xmc.ops.linear import linear_backward_input, linear_backward_weight, linear_forward
from tests import oracle
from tests.conftest import INTERPRETING

SHAPES = [
    pytest.param(dict(B=5, L=70, D=30, K=7), id="plain"),
    pytest.param(dict(B=1, L=33, D=16, K=4), id="one-row"),
    pytest.param(dict(B=3, L=9, D=6, K=1), id="fan-in-1"),
    pytest.param(dict(B=4, L=10, D=12, K=12), id="fan-in-all"),
    pytest.param(dict(B=2, L=1, D=1, K=1), id="one-of-everything"),
    pytest.param(dict(B=0, L=9, D=6, K=3), id="empty-batch"),
    pytest.param(dict(B=70, L=19, D=9, K=5), id="several-batch-blocks"),
    pytest.param(dict(B=6, L=50, D=40, K=16, G=16), id="groups"),
    pytest.param(dict(B=3, L=53, D=40, K=24, G=20), id="odd-groups-short-last"),
    pytest.param(dict(B=3, L=10, D=9, K=5, G=3), id="small-groups"),
    pytest.param(dict(B=2, L=7, D=9, K=3, G=40), id="one-group-of-all"),
    pytest.param(dict(B=2, L=5, D=70_000, K=3, index_dtype=torch.int32), id="int32-indices"),
    pytest.param(dict(B=2, L=5, D=65_536, K=3), id="widest-uint16"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
BIG = [
    pytest.param(dict(B=64, L=3001, D=768, K=32), id="typical"),
    pytest.param(dict(B=130, L=1030, D=300, K=33, G=32), id="typical-groups"),
]


def apply(problem, dy=None):
    """Output and gradients through the public function; ``dy`` is drawn where None."""
    x, weight, indices, bias, G = problem
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = ops.fixed_fan_in_linear(leaves[0], leaves[1], indices, leaves[2], group_size=G)
    if dy is None:
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return oracle.LinearGrads(y.detach(), *torch.autograd.grad(y, leaves, dy)), dy


def by_reference(problem, dy):
    x, weight, indices, bias, G = problem
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = reference.fixed_fan_in_linear(leaves[0], leaves[1], indices, leaves[2], group_size=G)
    return oracle.LinearGrads(y.detach(), *torch.autograd.grad(y, leaves, dy))


def check(problem):
    # bfloat16 is truncated by some interpreted casts, hence one more ulp of that format
    got, dy = apply(problem)
    truth, peer = oracle.linear(problem, dy), by_reference(problem, dy)
    for name, *values in zip(got._fields, got, truth, peer, strict=True):
        oracle.assert_accurate(name, *values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients(shape, dtype, device):
    check(oracle.make_problem(**shape, dtype=dtype, device=device))


@pytest.mark.skipif(INTERPRETING, reason="thousands of interpreted programs")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", BIG)
def test_output_and_gradients_of_larger_layers(shape, dtype, device):
    check(oracle.make_problem(**shape, dtype=dtype, device=device))


@pytest.mark.parametrize("G", [1, 4])
@pytest.mark.parametrize(
    ("x_dtype", "weight_dtype"),
    [(torch.float32, torch.bfloat16), (torch.float16, torch.float32), (torch.bfloat16, torch.float16)],
)
def test_mixed_dtypes(x_dtype, weight_dtype, G, device):
    problem = oracle.make_problem(3, 21, 20, 6, G, dtype=torch.bfloat16, device=device)
    problem = problem._replace(
        x=problem.x.to(x_dtype), weight=problem.weight.to(weight_dtype), bias=problem.bias.float()
    )
    check(problem)
    got, _ = apply(problem)
    assert (got.y.dtype, got.dx.dtype, got.dw.dtype, got.db.dtype) == (x_dtype, x_dtype, weight_dtype, torch.float32)


def test_contention_on_one_feature(device):
    problem = oracle.make_problem(4, 60, 10, 2, device=device)
    indices = torch.tensor([[7, 3]], dtype=torch.uint16, device=device).expand(60, 2)
    check(problem._replace(indices=indices))


@pytest.mark.parametrize("G", [1, 8])
def test_no_bias_and_leading_dimensions(G, device):
    problem = oracle.make_problem(6, 20, 12, 4, G, device=device)
    x = problem.x.view(2, 3, 12)
    y = ops.fixed_fan_in_linear(x, problem.weight, problem.indices, group_size=G)
    flat = ops.fixed_fan_in_linear(problem.x, problem.weight, problem.indices, group_size=G)
    assert y.shape == (2, 3, 20)
    assert torch.equal(y.view(6, 20), flat)
    row = ops.fixed_fan_in_linear(problem.x[0], problem.weight, problem.indices, group_size=G)
    torch.testing.assert_close(row, flat[0])


@pytest.mark.parametrize("G", [1, 8])
def test_non_contiguous_inputs(G, device):
    problem = oracle.make_problem(5, 20, 12, 4, G, device=device)
    got, dy = apply(problem)

    def strided(t):
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), 9, device=t.device).to(t.dtype)
        wide[..., ::2] = t
        return wide[..., ::2]

    spread = oracle.Problem(*(strided(t) for t in problem[:4]), G)
    for transposed in (False, True):
        upstream = dy.t().contiguous().t() if transposed else strided(dy)
        again, _ = apply(spread, upstream)
        for a, b in zip(got, again, strict=True):
            torch.testing.assert_close(a, b)
    broadcast = torch.ones((), device=device).expand(5, 20)
    check_sum, _ = apply(problem, broadcast)
    torch.testing.assert_close(check_sum.db, torch.full((20,), 5.0, device=device))


@pytest.mark.parametrize("needed", ["x", "weight", "bias", "xw", "none"])
def test_only_needed_gradients_are_computed(needed, device, monkeypatch):
    from sparse_xmc.ops._backend import kernels

    problem = oracle.make_problem(3, 20, 12, 4, device=device)
    module = kernels("linear", problem.x)
    calls = []
    for name in ("backward_input", "backward_weight"):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, name=name, run=run: (calls.append(name), run(*a))[1])
    wanted = {"x": "x", "weight": "weight", "bias": "bias", "xw": "x weight", "none": ""}[needed].split()
    x, weight, bias = (
        t.clone().requires_grad_(name in wanted)
        for name, t in (("x", problem.x), ("weight", problem.weight), ("bias", problem.bias))
    )
    y = ops.fixed_fan_in_linear(x, weight, problem.indices, bias)
    assert y.requires_grad == bool(wanted)
    if wanted:
        y.sum().backward()
    assert calls == [f"backward_{'input' if n == 'x' else n}" for n in wanted if n != "bias"]
    assert [t.grad is not None for t in (x, weight, bias)] == [n in wanted for n in ("x", "weight", "bias")]


@pytest.mark.parametrize("G", [1, 3])
@pytest.mark.parametrize("deterministic", [False, True])
def test_gradcheck(G, deterministic, device):
    problem = oracle.make_problem(2, 5, 6, 3, G, dtype=torch.float64, device=device)

    def run(x, weight, bias):
        return ops.fixed_fan_in_linear(x, weight, problem.indices, bias, group_size=G, deterministic=deterministic)

    inputs = [t.clone().requires_grad_() for t in (problem.x, problem.weight, problem.bias)]
    assert torch.autograd.gradcheck(run, inputs, nondet_tol=0.0 if deterministic else 1e-12)


@pytest.mark.parametrize("G", [1, 3])
def test_opcheck(G, device):
    x, weight, indices, bias, _ = oracle.make_problem(3, 10, 12, 4, G, device=device)
    dy = torch.randn(3, 10, device=device)
    torch.library.opcheck(linear_forward, (x, weight, indices, bias, G))
    torch.library.opcheck(linear_forward, (x, weight, indices, None, G))
    for deterministic in (False, True):
        torch.library.opcheck(linear_backward_input, (dy, weight, indices, 12, G, deterministic))
    torch.library.opcheck(linear_backward_weight, (dy, x, indices, G, torch.float16))


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.skipif(INTERPRETING, reason="once is enough")]),
    ],
)
def test_compile_without_graph_breaks(backend, device):
    problem = oracle.make_problem(6, 20, 12, 4, device=device)

    def run(x, weight, bias):
        y = ops.fixed_fan_in_linear(x.view(2, 3, 12), weight, problem.indices, bias)
        return torch.relu(y).sum()

    leaves = [t.clone().requires_grad_() for t in (problem.x, problem.weight, problem.bias)]
    expected = torch.autograd.grad(run(*leaves), leaves)
    torch._dynamo.reset()
    got = torch.autograd.grad(torch.compile(run, fullgraph=True, backend=backend)(*leaves), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_autocast(device):
    problem = oracle.make_problem(3, 20, 12, 4, device=device)
    x, weight, bias = (t.clone().requires_grad_() for t in (problem.x, problem.weight, problem.bias))
    with torch.autocast(device.type, torch.bfloat16):
        y = ops.fixed_fan_in_linear(x, weight, problem.indices, bias)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert {t.grad.dtype for t in (x, weight, bias)} == {torch.float32}
    full = ops.fixed_fan_in_linear(problem.x, problem.weight, problem.indices, problem.bias)
    torch.testing.assert_close(y.float(), full, rtol=3e-2, atol=3e-2)


def test_second_backward(device):
    problem = oracle.make_problem(3, 20, 12, 4, device=device)
    weight = problem.weight.clone().requires_grad_()
    y = ops.fixed_fan_in_linear(problem.x, weight, problem.indices)
    y.sum().backward(retain_graph=True)
    once = weight.grad.clone()
    y.sum().backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


def test_double_backward_raises(device):
    problem = oracle.make_problem(3, 20, 12, 4, device=device)
    x, weight = problem.x.clone().requires_grad_(), problem.weight.clone().requires_grad_()
    y = ops.fixed_fan_in_linear(x, weight, problem.indices)
    with pytest.raises(RuntimeError):
        (dx,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        torch.autograd.grad((dx**2).sum(), weight)


@pytest.mark.parametrize("changed", ["x", "weight", "indices"])
def test_changing_saved_tensors_before_backward_raises(changed, device):
    problem = oracle.make_problem(3, 20, 12, 4, device=device)
    x, weight, indices = problem.x.clone(), problem.weight.clone(), problem.indices.clone()
    y = ops.fixed_fan_in_linear(x.requires_grad_(), weight.requires_grad_(), indices)
    with torch.no_grad():
        tensor = {"x": x, "weight": weight, "indices": indices}[changed]
        tensor.copy_(tensor.clone())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("G", [1, 4])
def test_deterministic_gradient_is_bitwise_reproducible(G, device):
    problem = oracle.make_problem(9, 300 if not INTERPRETING else 30, 16, 8, G, device=device)

    def gradient():
        x = problem.x.clone().requires_grad_()
        y = ops.fixed_fan_in_linear(x, problem.weight, problem.indices, group_size=G, deterministic=True)
        return torch.autograd.grad(y.square().sum(), x)[0]

    assert torch.equal(gradient(), gradient())


def test_deterministic_none_follows_torch(device, monkeypatch):
    from sparse_xmc.ops._backend import kernels

    problem = oracle.make_problem(2, 5, 6, 3, device=device)
    module = kernels("linear", problem.x)
    seen = []
    run = module.backward_input
    monkeypatch.setattr(module, "backward_input", lambda *a: (seen.append(a[-1]), run(*a))[1])
    for enabled in (False, True):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda enabled=enabled: enabled)
        x = problem.x.clone().requires_grad_()
        ops.fixed_fan_in_linear(x, problem.weight, problem.indices).sum().backward()
    assert seen == [False, True]


@pytest.mark.skipif(INTERPRETING, reason="about the threads of the CPU kernels")
@pytest.mark.parametrize("G", [1, 16])
def test_results_do_not_depend_on_the_number_of_threads(G):
    problem = oracle.make_problem(33, 5000, 64, 16, G)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one, dy = apply(problem)
        torch.set_num_threads(3)
        three, _ = apply(problem, dy)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one[:3], three[:3], strict=True))


def bad_arguments():
    x, weight, indices, bias, _ = oracle.make_problem(3, 20, 12, 4)
    yield "x-features", (x[:, :3], weight, indices), {}, ValueError, "fan_in must not exceed in_features"
    yield "x-integer", (x.long(), weight, indices), {}, TypeError, "x must be float32.*int64"
    yield "x-not-a-tensor", (x.tolist(), weight, indices), {}, TypeError, "x must be a torch.Tensor, got list"
    yield "x-scalar", (x[0, 0], weight, indices), {}, ValueError, r"x must be \[..., in_features\]"
    yield "weight-1d", (x, weight[0], indices), {}, ValueError, r"weight must be \[out_features, fan_in\].*\[4\]"
    yield "no-labels", (x, weight[:0], indices[:0]), {}, ValueError, r"at least one label.*\[0, 4\]"
    yield "indices-rows", (x, weight, indices[1:]), {}, ValueError, r"= \[20, 4\].*got \[19, 4\]"
    yield "indices-int64", (x, weight, indices.long()), {}, TypeError, "indices must be torch.uint16.*torch.int64"
    yield "group-mismatch", (x, weight, indices), dict(group_size=3), ValueError, r"group_size=3, got \[20, 4\]"
    yield "group-zero", (x, weight, indices), dict(group_size=0), ValueError, "group_size must be at least 1, got 0"
    yield "group-float", (x, weight, indices), dict(group_size=2.0), TypeError, "group_size must be an int, got 2.0"
    yield "bias-shape", (x, weight, indices, bias[1:]), {}, ValueError, r"bias must be \[20\].*got \[19\]"
    yield "mixed-float64", (x.double(), weight, indices), {}, TypeError, "both be float64 or neither"
    yield (
        "weight-device",
        (x, weight.to("meta"), indices),
        {},
        ValueError,
        "indices must be on the weight's device meta",
    )
    yield "x-device", (x.to("meta"), weight, indices), {}, ValueError, "x must be on the weight's device cpu, got meta"
    wide = torch.randn(3, 70_000)
    yield "uint16-too-narrow", (wide, weight, indices), {}, TypeError, "must be torch.int32 for in_features=70000"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"), [pytest.param(*case[1:], id=case[0]) for case in bad_arguments()]
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.fixed_fan_in_linear(*arguments, **options)


@pytest.mark.parametrize(("value", "message"), [(12, "holds 12, outside"), (None, "twice")])
def test_debug_mode_checks_indices(value, message, monkeypatch):
    monkeypatch.setattr("sparse_xmc.ops.linear.debugging", lambda: True)
    x, weight, indices, _, _ = oracle.make_problem(3, 20, 12, 4)
    indices[5, 1] = indices[5, 0] if value is None else value
    with pytest.raises(ValueError, match=rf"indices\[5\] .*{message}"):
        ops.fixed_fan_in_linear(x, weight, indices)
