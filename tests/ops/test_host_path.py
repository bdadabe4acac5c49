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

_COUNT = """
import json, os, sys
os.environ["SPARSE_XMC_AUTOTUNE"] = "off"
import torch
from bench import stub_driver
stub_driver.use()
from sparse_xmc import ops
from sparse_xmc.optim.fused import FusedAdam, FusedSGD
from sparse_xmc.ops.triton_kernels import _launch

B, D, L, K, G = 8, 64, 128, 8, int(sys.argv[1])
x, weight, bias = torch.randn(B, D), torch.randn(L, K), torch.zeros(L)
indices = torch.zeros(-(-L // G), K, dtype=torch.uint16)
targets = torch.eye(B, L).to_sparse_csr()
counts = {}

def count(name, call):
    call()
    call()
    known, before, allocate, allocated = len(_launch._compiled), stub_driver.Launcher.calls, torch.empty, []
    torch.empty = lambda *a, **k: allocated.append(a) or allocate(*a, **k)
    try:
        call()
    finally:
        torch.empty = allocate
    assert len(_launch._compiled) == known, "a launch was not found in the cache"
    counts[name] = [stub_driver.Launcher.calls - before, len(allocated)]

def step(kind, targets):
    w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = kind(0.1)
    optimizer.attach(w, b)
    return lambda: ops.fixed_fan_in_step_(x, w, indices, b, targets, optimizer, group_size=G)

count("step", step(FusedSGD, targets))
count("adam", step(FusedAdam, targets))
count("topk", lambda: ops.fixed_fan_in_topk(x, weight, indices, bias, k=5, group_size=G))
count("sorted", step(FusedSGD, ops.sort_targets(targets, L)))
print(json.dumps(counts))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None or INTERPRETING, reason="about compiled Triton launches")
@pytest.mark.parametrize("group_size", [1, 32])
def test_launches_and_allocations_of_a_step(group_size):
    """Sort, prepare, head, finish; one launch less with sorted targets. All are found in the cache of launches."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, str(group_size)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads(done.stdout)
    assert {name: launches for name, (launches, _) in counts.items()} == {
        "step": 4, "adam": 4, "sorted": 3, "topk": 1 if group_size == 1 else 2
    }  # fmt: skip
    assert counts["step"][1] <= 11 and counts["sorted"][1] <= 8 and counts["adam"][1] <= 12


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
