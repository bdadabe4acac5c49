"""Weights of labels and rows, the asymmetric loss and reductions against the dense float64 oracle."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparse_xmc import metrics, ops
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim.fused import FusedAdam, FusedSGD
from tests import oracle
from tests.conftest import INTERPRETING
from tests.ops.test_loss import BF16, F32, F64, SHAPES, problem_and_targets

WEIGHTS = [("pos_weight",), ("sample_weight",), ("pos_weight", "sample_weight")]
FOCUS = [{}, {"gamma_pos": 1.0, "gamma_neg": 2.0, "clip": 0.0}, {"gamma_pos": 0.5, "gamma_neg": 0.0, "clip": 0.2}]
CASES = [(kind, names, {}) for kind in ("bce", "squared_hinge", "asymmetric") for names in WEIGHTS]
CASES += [("asymmetric", names, focus) for focus in FOCUS for names in ((), WEIGHTS[2])]


def drawn_weights(names, shape, device="cpu"):
    """Weights of zero, below and above 1, in dtypes that differ from the layer's."""
    g = torch.Generator().manual_seed(7)
    sizes = {"pos_weight": (shape[1], F64), "sample_weight": (shape[0], F32)}
    found = {}
    for name in names:
        size, dtype = sizes[name]
        found[name] = (torch.rand(size, generator=g) * 3).to(dtype)
        found[name][size // 2] = 0
        found[name] = found[name].to(device)
    return found


def gradients(problem, targets, **options):
    x, weight, indices, bias, G = problem
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    value = ops.fixed_fan_in_loss(leaves[0], leaves[1], indices, leaves[2], targets, group_size=G, **options)
    return value.detach(), torch.autograd.grad(value, leaves)


@pytest.mark.parametrize(("kind", "names", "focus"), CASES)
@pytest.mark.parametrize("dtype", [F32, BF16] if INTERPRETING else [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(shape, dtype, kind, names, focus, device):
    problem, dense, targets = problem_and_targets(shape, dtype, device)
    options = {**drawn_weights(names, shape, device), **focus}
    truth = oracle.loss(problem, dense, kind, **options)
    value, found = gradients(problem, targets, loss=kind, reduction="sum", **options)
    torch.testing.assert_close(value.cpu().double(), truth.value, rtol=2e-5 if dtype != F64 else 1e-11, atol=1e-30)
    for name, got, expected in zip(("dx", "dw", "db"), found, truth[1:], strict=True):
        peer = expected.to(dtype) if dtype != BF16 else expected + expected.abs().max() * 2**-8
        oracle.assert_accurate(name, got, expected, peer, ulps=32)


@pytest.mark.skipif(INTERPRETING, reason="float64 in the interpreter is slow and shown by the values above")
@pytest.mark.parametrize(("kind", "names", "focus"), CASES)
def test_gradcheck(kind, names, focus):
    problem, _, targets = problem_and_targets((3, 7, 6, 3, 2), F64)
    x, weight, indices, bias, G = problem
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    options = {**drawn_weights(names, (3, 7)), **focus}
    assert torch.autograd.gradcheck(
        lambda x, w, b: ops.fixed_fan_in_loss(x, w, indices, b, targets, loss=kind, group_size=G, **options), leaves
    )


@pytest.mark.parametrize("kind", ["bce", "asymmetric"])
@pytest.mark.parametrize("group_size", [1, 16])
def test_steps_apply_the_gradients(kind, group_size, device):
    """One SGD step of all three ways in, with weights, is the oracle's gradient step."""
    shape = (20, 37, 64, 32, group_size)
    problem, dense, targets = problem_and_targets(shape, F32, device)
    options = drawn_weights(WEIGHTS[2], shape, device)
    truth = oracle.loss(problem, dense, kind, **options)
    x, weight, indices, bias, G = problem
    for way in ("op", "layer", "backward"):
        w, b = (torch.nn.Parameter(t.clone()) for t in (weight, bias))
        optimizer = FusedSGD(0.5)
        optimizer.attach(w, b)
        leaf = x.clone().requires_grad_()
        if way == "backward":
            ops.updating_loss_(
                leaf, w, indices, b, targets, optimizer, loss=kind, reduction="sum", group_size=G, **options
            ).backward()
            dx = leaf.grad
        elif way == "layer":
            layer = FixedFanInLinear(64, 37, 32, group_size=G, device=device)
            layer.load_state_dict({"weight": weight, "indices": indices, "bias": bias})
            layer.fuse_optimizer(FusedSGD(0.5))
            _, dx = layer.step(x, targets, loss=kind, reduction="sum", **options)
            w, b = layer.weight, layer.bias
        else:
            loss, dx = ops.fixed_fan_in_step_(
                x, w, indices, b, targets, optimizer, loss=kind, reduction="sum", group_size=G, **options
            )
            torch.testing.assert_close(loss.cpu().double(), truth.value, rtol=1e-5, atol=0)
        for name, got, start, gradient in (("w", w, weight, truth.dw), ("b", b, bias, truth.db)):
            expected = start.cpu().double() - 0.5 * gradient
            oracle.assert_accurate(f"{way} {name}", got.detach(), expected, expected.float(), ulps=64)
        oracle.assert_accurate(f"{way} dx", dx, truth.dx, truth.dx.float(), ulps=64)


def test_extreme_logits_of_the_asymmetric_loss(device):
    """No inf and no NaN from -1e4 to 1e4, and the gradient's sign is that of the mistake."""
    logits = torch.tensor([0.0, -1e4, 1e4, -100.0, 100.0, -20.0, 20.0, -2.95, -2.94], device=device)
    indices, x = torch.zeros(9, 1, dtype=torch.uint16, device=device), torch.ones(1, 1, device=device)
    for positive in (0, 1):
        targets = oracle.make_targets(torch.full((1, 9), positive)).to(device)
        bias = torch.zeros(9, device=device, requires_grad=True)
        value = ops.fixed_fan_in_loss(
            x, logits[:, None], indices, bias, targets, loss="asymmetric", reduction="sum", gamma_pos=1.0
        )
        value.backward()
        problem = oracle.Problem(x, logits[:, None], indices, torch.zeros(9), 1)
        truth = oracle.loss(problem, torch.full((1, 9), positive), "asymmetric", gamma_pos=1.0)
        torch.testing.assert_close(value.detach().cpu().double(), truth.value, rtol=1e-5, atol=1e-30)
        torch.testing.assert_close(bias.grad.cpu().double(), truth.db, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["bce", "asymmetric"])
def test_weights_of_one_change_nothing_but_rounding(kind, device):
    problem, _, targets = problem_and_targets(SHAPES[1], F32, device)
    plain = gradients(problem, targets, loss=kind)
    ones = {"pos_weight": torch.ones(SHAPES[1][1], device=device), "sample_weight": torch.ones(20, device=device)}
    torch.testing.assert_close(gradients(problem, targets, loss=kind, **ones), plain, rtol=1e-5, atol=1e-6)


def test_mean_all_is_the_mean_of_torch(device):
    problem, dense, targets = problem_and_targets((20, 37, 30, 8, 5), F32, device)
    x, weight, indices, bias, G = problem
    pos_weight = drawn_weights(["pos_weight"], (20, 37), device)["pos_weight"].float()
    logits = ops.fixed_fan_in_linear(x, weight, indices, bias, group_size=G)
    expected = F.binary_cross_entropy_with_logits(logits, (dense > 0).float().to(device), pos_weight=pos_weight)
    options = {"reduction": "mean_all", "pos_weight": pos_weight, "group_size": G}
    torch.testing.assert_close(ops.fixed_fan_in_loss(x, weight, indices, bias, targets, **options), expected)
    mean = ops.fixed_fan_in_loss(x, weight, indices, bias, targets, pos_weight=pos_weight, group_size=G)
    torch.testing.assert_close(mean, expected * 37)


def test_propensity_weighted_loss(device):
    """The documented use: a positive of propensity p weighs 2 / p - 1, label by label."""
    problem, dense, targets = problem_and_targets((20, 37, 30, 8, 1), F32, device)
    inverse = metrics.inverse_propensities(np.arange(37) + 1, 500)
    pos_weight = torch.from_numpy(2 * inverse - 1).to(device)
    truth = oracle.loss(problem, dense, "bce", pos_weight=pos_weight)
    value, _ = gradients(problem, targets, reduction="sum", pos_weight=pos_weight)
    assert (pos_weight > 1).all() and pos_weight[0] > pos_weight[-1]
    torch.testing.assert_close(value.cpu().double(), truth.value, rtol=1e-5, atol=0)


@pytest.mark.skipif(INTERPRETING, reason="about torch.compile, which does not depend on the kernels")
def test_compiles_with_weights():
    (x, weight, indices, bias, _), _, targets = problem_and_targets((3, 6, 9, 3, 1), F32)
    options = drawn_weights(WEIGHTS[2], (3, 6))
    pair = (targets.crow_indices(), targets.col_indices())
    leaves = [t.requires_grad_() for t in (x, weight, bias)]

    def call(x):
        return ops.fixed_fan_in_loss(x.sin(), weight, indices, bias, pair, loss="asymmetric", **options)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x), leaves), torch.autograd.grad(call(x), leaves))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pos_weight": torch.ones(5)}, ValueError, r"pos_weight must be \[6\], one number for each label, got \[5\]"),
        ({"sample_weight": torch.ones(3, 1)}, ValueError, r"sample_weight must be \[3\].* row of x, got \[3, 1\]"),
        ({"pos_weight": torch.ones(6).long()}, TypeError, "pos_weight must be float32.*got torch.int64"),
        ({"pos_weight": [1.0] * 6}, TypeError, "pos_weight must be a torch.Tensor, got list"),
        ({"pos_weight": torch.ones(6, requires_grad=True)}, ValueError, "pos_weight must not require a gradient"),
        ({"gamma_neg": 2.0}, ValueError, "gamma_neg goes with loss='asymmetric', got loss='bce'"),
        ({"loss": "asymmetric", "gamma_neg": -1.0}, ValueError, "gamma_neg must be finite and >= 0, got -1.0"),
        ({"loss": "asymmetric", "clip": 1.0}, ValueError, r"clip must be in \[0, 1\), got 1.0"),
        ({"loss": "asymmetric", "clip": "no"}, TypeError, "clip must be a number, got 'no'"),
        ({"loss": "cross_entropy", "pos_weight": None}, TypeError, "'cross_entropy' has no option 'pos_weight'"),
        ({"reduction": "none"}, ValueError, "reduction must be 'mean', 'mean_all' or 'sum', got 'none'"),
        ({"weights": None}, TypeError, "a loss has no option 'weights'"),
    ],
)
def test_options_are_checked(options, error, message):
    (x, weight, indices, bias, _), _, targets = problem_and_targets((3, 6, 9, 3, 1), F32)
    with pytest.raises(error, match=message):
        ops.fixed_fan_in_loss(x, weight, indices, bias, targets, **options)


def test_the_loss_is_left_out_on_request(device):
    problem, _, targets = problem_and_targets((20, 37, 30, 8, 5), F32, device)
    x, weight, indices, bias, G = problem
    results = []
    for need_loss in (True, False):
        w, b = (torch.nn.Parameter(t.clone()) for t in (weight, bias))
        optimizer = FusedAdam(0.1)
        optimizer.attach(w, b)
        loss, dx = ops.fixed_fan_in_step_(x, w, indices, b, targets, optimizer, group_size=G, need_loss=need_loss)
        assert (loss is not None) == need_loss
        results.append((dx, w.detach(), b.detach()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)
