"""What only the CPU kernels promise: memory, far offsets, threads and forks."""

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from tests import oracle
from tests.conftest import INTERPRETING
from tests.far_memory import huge

pytestmark = [
    pytest.mark.skipif(INTERPRETING, reason="about the CPU kernels"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="virtual memory and ru_maxrss as on Linux"),
]

_PEAK = """
import resource, torch
from sparse_xmc import ops
B, L, D, K = 64, 100_000, 512, 16
x, weight = torch.randn(B, D, requires_grad=True), torch.randn(L, K, requires_grad=True)
indices = (torch.arange(L)[:, None] + 7 * torch.arange(K)).remainder(D).to(torch.uint16)
def step(labels):
    y = ops.fixed_fan_in_linear(x, weight[:labels], indices[:labels])
    torch.autograd.grad(y, (x, weight), torch.ones(()).expand_as(y))
step(1000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(L)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_nothing_larger_than_inputs_and_results_is_built():
    grown = int(subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True).stdout)
    B, L, D, K = 64, 100_000, 512, 16
    results = 2 * B * L * 4 + 2 * L * K * 4  # y and dy; dw and its place in the whole weight's gradient
    assert grown < results + 20e6
    assert 2 * results < L * D * 4 and 4 * results < B * L * K * 4


@pytest.mark.parametrize("G", [1, 64])
def test_offsets_beyond_int32(G):
    """The last labels of a layer of 2^31 connections and the last row of a batch of 2^31 logits."""
    from sparse_xmc.ops.cpu_kernels import linear
    from sparse_xmc.ops.cpu_kernels._numeric import as_numpy
    from sparse_xmc.ops.cpu_kernels._slab import make_slab

    B, K, D, tail = 33, 32, 40, 128
    L = 2**26 + 2 * tail
    assert L * K > 2**31 and (B - 1) * L > 2**31
    problem = oracle.make_problem(B, tail, D, K, G)
    start = L - tail
    weight, dw = huge(L, K, dtype=torch.float32), huge(L, K, dtype=torch.float32)
    y, dy = huge(B, L, dtype=torch.float32), huge(B, L, dtype=torch.float32)
    indices = huge(L // G, K, dtype=torch.uint16)
    upstream = torch.randn(B, tail)
    weight[start:], dy[:, start:], indices[start // G :] = problem.weight, upstream, problem.indices
    truth = oracle.linear(problem._replace(bias=torch.zeros(tail)), upstream)

    slab = make_slab(problem.x)
    blocks, _, W = slab.shape
    run = linear._kernels(W)
    partial = torch.zeros(blocks, 1, D, W)
    bias = as_numpy(torch.empty(0))
    slab_array, weight_array, indices_array, y_array, dy_array, dw_array, partial_array = (
        as_numpy(t) for t in (slab, weight, indices, y, dy, dw, partial)
    )
    for block in range(blocks):
        run.forward(slab_array, weight_array, indices_array, bias, y_array, G, block, start, L)
        run.backward_input(dy_array, weight_array, indices_array, partial_array, G, block, 0, start, L)
    run.backward_weight(dy_array, slab_array, indices_array, dw_array, G, start, L)
    dx = torch.cat([partial[block, 0].t() for block in range(blocks)])[:B]
    for got, expected in ((y[:, start:], truth.y), (dx, truth.dx), (dw[start:], truth.dw)):
        np.testing.assert_allclose(got.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)


def _run_eight_tasks() -> None:
    from sparse_xmc.kernels import threads

    done: list[int] = []
    threads.run(done.append, [(i,) for i in range(8)])
    assert sorted(done) == list(range(8))


def test_a_forked_process_computes_on():
    """DataLoader workers are forks: a kernel must run in one after its parent ran kernels on several threads."""
    from sparse_xmc.kernels import threads

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    child = multiprocessing.get_context("fork").Process(target=_run_eight_tasks)
    try:
        threads.run(threading.Barrier(3).wait, [(60,)] * 3)  # now the pool has all its threads
        child.start()
        child.join(60)
        assert child.exitcode == 0, "None: it hangs"
    finally:
        torch.set_num_threads(before)
        child.kill()


def test_threads_import_where_there_is_no_fork(monkeypatch):
    monkeypatch.delattr(os, "register_at_fork")
    spec = importlib.util.find_spec("sparse_xmc.kernels.threads")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.num_threads() == torch.get_num_threads()


def test_an_error_in_a_thread_reaches_the_caller():
    from sparse_xmc.kernels import threads

    def fail(task):
        raise ZeroDivisionError(task)

    with pytest.raises(ZeroDivisionError):
        threads.run(fail, [(i,) for i in range(8)])
