"""How much the host does per call: launches, allocations and trips through torch's dispatcher, counted instead of timed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.optim.fused import FusedSGD
from tests.conftest import INTERPRETING

_SET_UP = """
import json, os, sys
os.environ["SPARSE_XMC_AUTOTUNE"] = "off"
import torch
from bench import stub_driver
stub_driver.use()
from sparse_xmc import ops
from sparse_xmc.optim.fused import FusedAdam, FusedSGD
from sparse_xmc.ops.triton_kernels import _launch, head_plan
G, package = int(sys.argv[1]), os.path.dirname(ops.__file__).removesuffix("ops")
"""

_COUNT = (
    _SET_UP
    + """
B, D, L, K = 8, 64, 128, 8
x, weight, bias, dy = torch.randn(B, D), torch.randn(L, K), torch.zeros(L), torch.ones(B, L)
indices = torch.zeros(-(-L // G), K, dtype=torch.uint16)
targets = torch.eye(B, L).to_sparse_csr()
leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
bound = []
original = _launch.Launch.__call__

def noted(self, stream, *arguments):
    if not self.compiled:
        bound.append(self)
    original(self, stream, *arguments)

_launch.Launch.__call__ = noted
counts = {}

def count(name, call):
    call()
    call()
    before, allocated, makers = stub_driver.Launcher.calls, [], ("empty", "zeros", "empty_like")
    originals = {maker: getattr(torch, maker) for maker in makers}
    bound.clear()
    for maker, make in originals.items():
        setattr(torch, maker, lambda *a, make=make, **k: allocated.append(a) or make(*a, **k))
    try:
        call()
    finally:
        for maker, make in originals.items():
            setattr(torch, maker, make)
    assert not bound, "Triton bound a launch anew"
    launches = stub_driver.Launcher.calls - before
    _launch.Launch.__call__ = original
    frames = []
    sys.setprofile(lambda frame, event, _: event == "call" and frames.append(frame.f_code.co_filename))
    call()
    sys.setprofile(None)
    _launch.Launch.__call__ = noted
    counts[name] = [launches, len(allocated), sum(frame.startswith(package) for frame in frames)]

def step(kind, targets):
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = kind(0.1)
    optimizer.attach(w, b)
    return lambda: ops.fixed_fan_in_step_(x, w, indices, b, targets, optimizer, group_size=G)

def linear(*parameters):
    return ops.fixed_fan_in_linear(parameters[0], parameters[1], indices, parameters[2], group_size=G)

def loss():
    return ops.fixed_fan_in_loss(leaves[0], leaves[1], indices, leaves[2], targets, group_size=G)

count("forward", lambda: linear(x, weight, bias))
count("forward, backward", lambda: linear(*leaves).backward(dy))
count("loss, backward", lambda: loss().backward())
count("step", step(FusedSGD, targets))
count("adam", step(FusedAdam, targets))
count("topk", lambda: ops.fixed_fan_in_topk(x, weight, indices, bias, k=5, group_size=G))
count("sorted", step(FusedSGD, ops.sort_targets(targets, L)))
print(json.dumps(counts))
"""
)

_SAME_KINDS = (
    _SET_UP
    + """
import itertools
head_plan.Plan.compiled = property(lambda self: False)  # then all pointers are tensors, which Triton can look at
kinds, repeated = {}, 0

def call(self, stream, *arguments):
    global repeated
    if self.compiled and stream is not None:
        binder = self.kernel.device_caches[0][-1]
        found = str(binder(*arguments, **self.constants, debug=False)[1])
        assert kinds.setdefault(id(self), (self, found))[1] == found, (self.kernel.__name__, found)
        repeated += 1
    else:
        original(self, stream, *arguments)
        if self.compiled and stream is not None:
            binder = self.kernel.device_caches[0][-1]
            kinds[id(self)] = self, str(binder(*arguments, **self.constants, debug=False)[1])

original, _launch.Launch.__call__ = _launch.Launch.__call__, call
seeds = itertools.cycle((0, 1, -5, 1 << 62))
for B, D, L, K in ((1, 16, 1, 1), (17, 64, 129, 8), (16, 33, 128, 16)):
    for x in (torch.randn(B, D), torch.randn(D, B).t(), torch.randn(B, D + 1)[:, 1:]):
        weight, bias = torch.randn(L, K), torch.zeros(L)
        indices = torch.zeros(-(-L // G), K, dtype=torch.uint16)
        for positives in (0, 1, 3):
            lists = [sorted({row * 7 % L, *range(min(positives, L))}) if positives else [] for row in range(B)]
            w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
            optimizer = (FusedSGD, FusedAdam)[positives == 1](0.1, seed=next(seeds))
            optimizer.attach(w, b)
            for step in (0, 0, 14, 1 << 40):
                optimizer.param_groups[0]["updates"] += step
                ops.fixed_fan_in_step_(x, w, indices, b, lists, optimizer, group_size=G)
            leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
            for gradient in (torch.ones(B, L), torch.ones(()).expand(B, L), torch.ones(L, B).t()):
                y = ops.fixed_fan_in_linear(leaves[0], leaves[1], indices, leaves[2], group_size=G)
                y.backward(gradient)
            (2 * ops.fixed_fan_in_loss(leaves[0], leaves[1], indices, leaves[2], lists, group_size=G)).backward()
            ops.fixed_fan_in_topk(x, weight, indices, bias, k=1, group_size=G)
assert repeated > 200, repeated
"""
)


def in_a_process(script: str, group_size: int) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", script, str(group_size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


compiled_only = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or INTERPRETING, reason="about compiled Triton launches"
)


def reuses_launches() -> bool:
    from sparse_xmc.ops.triton_kernels import _launch

    return _launch._REUSES


@compiled_only
@pytest.mark.parametrize("group_size", [1, 32])
def test_launches_and_allocations_of_a_call(group_size):
    """Step: sort, prepare, head, finish; one launch less with sorted targets. None of them is bound by Triton again."""
    if not reuses_launches():
        pytest.skip("this version of Triton is launched by its public interface")
    counts = json.loads(in_a_process(_COUNT, group_size))
    grouped = group_size > 1
    assert {name: launches for name, (launches, _, _) in counts.items()} == {
        "forward": 2, "forward, backward": 5, "loss, backward": 7, "step": 4, "adam": 4, "sorted": 3,
        "topk": 4 if grouped else 3,
    }  # fmt: skip
    most = {"forward": 2, "forward, backward": 5, "loss, backward": 8, "step": 5, "adam": 5, "sorted": 3, "topk": 5}
    assert all(allocations <= most[name] for name, (_, allocations, _) in counts.items()), counts
    # calls of Python functions of this package
    most = {
        "forward": 24,
        "forward, backward": 54,
        "loss, backward": 64,
        "step": 52,
        "adam": 52,
        "sorted": 41,
        "topk": 34,
    }
    assert all(calls <= most[name] for name, (_, _, calls) in counts.items()), counts


@compiled_only
@pytest.mark.parametrize("group_size", [1, 4])
def test_repeated_launches_have_the_arguments_that_were_compiled(group_size):
    """What Triton would specialise on never differs from what it did when the launch was compiled."""
    if not reuses_launches():
        pytest.skip("this version of Triton is launched by its public interface")
    in_a_process(_SAME_KINDS, group_size)


def calls_of_the_dispatcher(monkeypatch, call):
    """How many ops of this package go through torch's dispatcher."""
    from sparse_xmc.ops import linear, loss, prune_regrow, step, topk

    seen = []
    for module, names in (
        (linear, ("linear_forward", "linear_backward_input", "linear_backward_weight")),
        (loss, ("head_loss", "head_gradients")),
        (step, ("head_step_",)),
        (topk, ("topk_op",)),
        (prune_regrow, ("rewire_", "lowest_per_row")),
    ):
        for name in names:
            op = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, op=op, name=name: seen.append(name) or op(*a))
    call()
    return seen


def eager_calls(x, weight, indices, bias, targets):
    """Every op once, forward and backward."""
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    ops.fixed_fan_in_linear(leaves[0], leaves[1], indices, leaves[2]).sum().backward()
    ops.fixed_fan_in_loss(leaves[0], leaves[1], indices, leaves[2], targets).backward()
    optimizer = FusedSGD(0.1)
    optimizer.attach(leaves[1], leaves[2])
    ops.fixed_fan_in_step_(x, leaves[1], indices, leaves[2], targets, optimizer)
    ops.updating_loss_(leaves[0], leaves[1], indices, leaves[2], targets, optimizer).backward()
    ops.fixed_fan_in_topk(x, weight, indices, bias, k=2)
    ops.prune_regrow_(weight, indices, x.shape[1], fraction=0.3, seed=0)
    ops.prune_regrow_(weight, indices, x.shape[1], fraction=0.3, scope="global", seed=0)


def test_eager_calls_go_past_the_dispatcher(monkeypatch, device):
    x, weight, bias = (torch.randn(*shape, device=device) for shape in ((3, 9), (6, 3), (6,)))
    indices = ops.init_indices(6, 9, 3, seed=0, device=device)
    targets = torch.eye(3, 6, device=device).to_sparse_csr()
    assert calls_of_the_dispatcher(monkeypatch, lambda: eager_calls(x, weight, indices, bias, targets)) == []


def test_who_watches_sees_every_op(monkeypatch, device):
    """Under a dispatch mode nothing goes past it, with the same results."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.add(str(function))
            return function(*args, **(kwargs or {}))

    x, weight, bias = (torch.randn(*shape, device=device) for shape in ((3, 9), (6, 3), (6,)))
    indices = ops.init_indices(6, 9, 3, seed=0, device=device)
    targets = torch.eye(3, 6, device=device).to_sparse_csr()
    with Watching() as mode:
        eager_calls(x, weight, indices, bias, targets)
    names = ("linear_forward", "linear_backward_input", "linear_backward_weight", "head_loss", "head_gradients")
    names += ("head_step_", "topk", "rewire_", "lowest_per_row", "sort_positives")
    assert {f"sparse_xmc.{name}.default" for name in names} <= mode.seen


def test_what_is_written_to_gets_a_new_version(device):
    x, weight, bias = (torch.randn(*shape, device=device) for shape in ((3, 9), (6, 3), (6,)))
    indices = ops.init_indices(6, 9, 3, seed=0, device=device)
    optimizer = FusedSGD(0.1, momentum=0.9)
    leaves = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer.attach(*leaves)
    written = [*leaves, *(optimizer.state[leaf]["momentum_buffer"] for leaf in leaves)]
    before = [tensor._version for tensor in (*written, indices)]
    ops.fixed_fan_in_step_(x, weight, indices, bias, torch.eye(3, 6, device=device).to_sparse_csr(), optimizer)
    ops.prune_regrow_(weight.detach(), indices, 9, fraction=0.5, seed=0)
    assert all(tensor._version > version for tensor, version in zip((*written, indices), before, strict=True))


def test_torch_counts_the_operations(device):
    """``FlopCounterMode``: two for each connection and row, in every product."""
    from torch.utils.flop_counter import FlopCounterMode

    B, D, L, K = 3, 9, 6, 3
    x, weight, bias = (torch.randn(*shape, device=device) for shape in ((B, D), (L, K), (L,)))
    indices = ops.init_indices(L, D, K, seed=0, device=device)
    targets = torch.eye(B, L, device=device).to_sparse_csr()
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    optimizer = FusedSGD(0.1)
    optimizer.attach(weight, bias)
    classes = torch.tensor([0, 1, 2], device=device)
    layer = (indices, leaves[2])
    calls = {
        "forward": (lambda: ops.fixed_fan_in_linear(x, weight, indices, bias), 1),
        "linear": (lambda: ops.fixed_fan_in_linear(*leaves[:2], *layer).sum().backward(), 3),
        "loss": (lambda: ops.fixed_fan_in_loss(*leaves[:2], *layer, targets).backward(), 4),
        "frozen x": (lambda: ops.fixed_fan_in_loss(x, leaves[1], *layer, targets).backward(), 3),
        "step": (lambda: ops.fixed_fan_in_step_(x, weight, indices, bias, targets, optimizer), 3),
        "softmax": (lambda: ops.fixed_fan_in_loss(*leaves[:2], *layer, classes, loss="cross_entropy").backward(), 4),
        "topk": (lambda: ops.fixed_fan_in_topk(x, weight, indices, bias, k=2), 1),
    }
    for name, (call, products) in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == 2 * products * B * L * K, name


def test_the_environment_is_read_in_every_call(monkeypatch):
    """However the variable comes and goes, also in a mapping that stands in for ``os.environ``."""
    from sparse_xmc.ops._backend import debugging

    monkeypatch.delenv("SPARSE_XMC_DEBUG", raising=False)
    assert not debugging()
    for value, expected in (("1", True), ("0", False), ("On", True), ("", False)):
        monkeypatch.setenv("SPARSE_XMC_DEBUG", value)
        assert debugging() is expected
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", {"SPARSE_XMC_DEBUG": "true"})
        assert debugging()
    os.environ.pop("SPARSE_XMC_DEBUG")
    assert not debugging()
    indices = torch.zeros(2, 3, dtype=torch.uint16)
    os.environ.update(SPARSE_XMC_DEBUG="1")
    with pytest.raises(ValueError, match="twice"):
        ops.fixed_fan_in_linear(torch.ones(1, 4), torch.ones(2, 3), indices)


def test_a_tensor_that_escaped_from_a_transform_is_taken(device):
    """Such a tensor looks plain and has no memory of its own."""
    escaped = []
    torch.func.grad(lambda x: (escaped.append(x), x.sum())[1])(torch.ones(3, 9, device=device))
    weight = torch.ones(6, 3, device=device, requires_grad=True)
    indices = ops.init_indices(6, 9, 3, seed=0, device=device)
    assert ops.fixed_fan_in_linear(escaped[0], weight, indices).tolist() == [[3.0] * 6] * 3
    targets = torch.zeros(3, 6, device=device)
    ops.fixed_fan_in_loss(escaped[0], weight, indices, None, targets).backward()
    assert weight.grad is not None


def test_kernels_are_launched_on_their_tensors_gpu(monkeypatch):
    """Triton launches on the current device, whichever the arguments are on."""
    from types import SimpleNamespace

    from sparse_xmc.ops import _backend

    current = [0]

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device.index)

        def __exit__(self, *error):
            current.pop()

    launched = []
    module = SimpleNamespace(forward=lambda x, scale=1: launched.append(current[-1]) or 2 * scale)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current[-1], raising=False)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(_backend, "_load", lambda backend, op: module)
    for index in (0, 1, 0):
        x = SimpleNamespace(is_cuda=True, get_device=lambda index=index: index, device=torch.device("cuda", index))
        assert _backend.kernels("linear", x).forward(x, scale=3) == 6
    assert launched == [0, 1, 0]
    assert current == [0]
