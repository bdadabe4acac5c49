"""Cross-entropy of a fixed fan-in head against torch's, on the dense oracle weights in float64."""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from sparse_xmc import ops
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.ops import cross_entropy
from sparse_xmc.ops.cross_entropy import fixed_fan_in_cross_entropy
from tests import oracle
from tests.conftest import INTERPRETING

B, L, D, K = (4, 21, 12, 5) if INTERPRETING else (6, 137, 24, 5)
OPTIONS = [
    pytest.param({}, id="plain"),
    pytest.param({"reduction": "sum", "label_smoothing": 0.1}, id="smoothing"),
    pytest.param({"class_weight": True, "label_smoothing": 0.2}, id="weights+smoothing"),
    pytest.param({"class_weight": True, "ignore_index": 3}, id="weights+ignore"),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles for a few labels, the last one short."""
    monkeypatch.setattr(cross_entropy, "_TILE_ELEMENTS", B * 32 if not INTERPRETING else B * 16)


def values(device, dtype, group_size, options):
    problem = oracle.make_problem(B, L, D, K, group_size, dtype=dtype, device=device, seed=1)
    targets = torch.randint(0, L, (B,), generator=torch.Generator().manual_seed(2))
    targets[1] = options.get("ignore_index", -100)
    weight = torch.linspace(0.5, 2, L, dtype=dtype) if options.get("class_weight") else None
    return problem, targets.to(device), None if weight is None else weight.to(device)


def truth(problem, targets, class_weight, options, dtype=torch.float64):
    """Loss and gradients of the dense head, in float64 on the CPU (or rounded through ``dtype``)."""
    x, bias = (t.detach().cpu().to(dtype).requires_grad_() for t in (problem.x, problem.bias))
    W = oracle.dense_weight(problem.weight, problem.indices, D, problem.group_size).to(dtype).requires_grad_()
    weight = None if class_weight is None else class_weight.cpu().to(dtype)
    plain = {key: value for key, value in options.items() if key != "class_weight"}
    loss = F.cross_entropy(x @ W.t() + bias, targets.cpu(), weight=weight, **plain)
    dx, dW, db = torch.autograd.grad(loss, (x, W, bias))
    columns = problem.indices.cpu().long()[torch.arange(L) // problem.group_size]
    return loss.detach(), dx, dW.gather(1, columns), db


@pytest.mark.parametrize("group_size", [1, 16])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_dense_expression(device, dtype, group_size, options):
    if dtype == torch.bfloat16 and options:
        pytest.skip("dtype and options are independent")
    problem, targets, class_weight = values(device, dtype, group_size, options)
    x, weight, bias = (t.clone().requires_grad_() for t in (problem.x, problem.weight, problem.bias))
    arguments = {**options, "class_weight": class_weight, "group_size": group_size}
    loss = fixed_fan_in_cross_entropy(x, weight, problem.indices, bias, targets, **arguments)
    gradients = torch.autograd.grad(3 * loss, (x, weight, bias))
    exact = truth(problem, targets, class_weight, options)
    peer = truth(problem, targets, class_weight, options, dtype)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    oracle.assert_accurate("loss", loss[None], exact[0][None], peer[0][None])
    for name, got, want, other in zip(["x", "weight", "bias"], gradients, exact[1:], peer[1:], strict=True):
        assert got.dtype == dtype
        oracle.assert_accurate(name, got, 3 * want, 3 * other, ulps=16)


def test_large_logits_and_absent_gradients(device):
    problem, targets, _ = values(device, torch.float32, 1, {})
    x = (problem.x * 1e4).requires_grad_()
    loss = fixed_fan_in_cross_entropy(x, problem.weight, problem.indices, None, targets)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()
    frozen = fixed_fan_in_cross_entropy(x.detach(), problem.weight, problem.indices, problem.bias, targets)
    assert not frozen.requires_grad
    ignored = torch.full_like(targets, -100)
    assert fixed_fan_in_cross_entropy(x, problem.weight, problem.indices, None, ignored, reduction="sum") == 0


@pytest.mark.skipif(INTERPRETING, reason="one backend is enough: torch's machinery is tested")
def test_custom_ops_and_compilation():
    problem, targets, _ = values("cpu", torch.float32, 1, {})
    share = torch.rand(B)
    tensors = (problem.x, problem.weight, problem.indices, problem.bias, targets, None)
    torch.library.opcheck(cross_entropy.softmax_statistics, (*tensors, 1, True))
    torch.library.opcheck(
        cross_entropy.softmax_gradients, (*tensors, share, share, share, share, 1, True, True, True, False)
    )
    expected = fixed_fan_in_cross_entropy(*tensors[:5])
    compiled = torch.compile(fixed_fan_in_cross_entropy, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*tensors[:5]), expected)


def test_errors(device):
    problem, targets, _ = values(device, torch.float32, 1, {})
    head = (problem.x, problem.weight, problem.indices, problem.bias)
    for bad, options, error, message in [
        (targets.float(), {}, TypeError, "int64"),
        (targets[:-1], {}, ValueError, rf"targets must be \[{B}\].*\[{B - 1}\]"),
        (targets, {"label_smoothing": 1.0}, ValueError, "label_smoothing"),
        (targets, {"reduction": "none"}, ValueError, "reduction"),
        (targets, {"class_weight": torch.ones(3, device=device)}, ValueError, r"class_weight must be \[" + str(L)),
    ]:
        with pytest.raises(error, match=message):
            fixed_fan_in_cross_entropy(*head, bad, **options)
    if device.type == "cpu":
        targets[2] = L
        with pytest.raises(ValueError, match=rf"targets\[2\] is {L}, outside \[0, {L}\)"):
            fixed_fan_in_cross_entropy(*head, targets)


def test_is_a_loss_of_the_op_and_of_the_layer(device):
    problem, targets, class_weight = values(device, torch.float32, 1, {"class_weight": True})
    options = {"label_smoothing": 0.1, "class_weight": class_weight}
    expected = fixed_fan_in_cross_entropy(*problem[:4], targets, **options)
    assert torch.equal(ops.fixed_fan_in_loss(*problem[:4], targets, loss="cross_entropy", **options), expected)
    layer = FixedFanInLinear(D, L, K, device=device)
    layer.load_state_dict({"weight": problem.weight, "indices": problem.indices, "bias": problem.bias})
    assert torch.equal(layer.loss(problem.x, targets, loss="cross_entropy", **options), expected)
    csr = torch.eye(B, L, device=device).to_sparse_csr()
    with pytest.raises(ValueError, match="goes with loss='cross_entropy'"):
        ops.fixed_fan_in_loss(*problem[:4], csr, label_smoothing=0.1)


_MEMORY = """
import re, torch
from sparse_xmc.ops.cross_entropy import fixed_fan_in_cross_entropy
B, L, D, K = 512, {L}, 32, 4
torch.set_num_threads(1)
x = torch.randn(B, D, requires_grad=True)
weight, bias = (torch.zeros(shape, requires_grad=True) for shape in ((L, K), (L,)))
indices, targets = torch.arange(K).repeat(L, 1).to(torch.uint16), torch.arange(B)
def step(classes):
    fixed_fan_in_cross_entropy(
        x, weight[:classes], indices[:classes], bias[:classes], targets,
        label_smoothing=0.1, class_weight=torch.ones(classes),
    ).backward()
def resident(kind):
    with open("/proc/self/status") as file:
        return int(re.search(kind + r":\\s+(\\d+) kB", file.read())[1]) * 1024
step(4000)  # several tiles: everything is compiled and allocated once
before = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts here
step(L)
print(resident("VmHWM") - before, B * L * 4)
"""


@pytest.mark.skipif(INTERPRETING or sys.platform != "linux", reason="measures the CPU kernels' memory on Linux")
def test_logits_are_never_in_memory():
    """Loss and gradients at 200k classes grow the process by less than 10 % of one float32 logit matrix (410 MB)."""
    done = subprocess.run([sys.executable, "-c", _MEMORY.format(L=200_000)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    growth, logits = map(int, done.stdout.split())
    assert 0 < growth < 0.1 * logits, f"grew by {growth / 1e6:.1f} MB; a logit matrix takes {logits / 1e6:.1f} MB"
