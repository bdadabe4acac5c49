"""Inverted index: its definition, and that it follows the topology."""

import gc

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.ops import _topology_cache
from sparse_xmc.ops._backend import kernels
from sparse_xmc.ops.transpose import transpose_op
from tests import oracle

SHAPES = [
    pytest.param(dict(B=0, L=37, D=20, K=6), id="plain"),
    pytest.param(dict(B=0, L=1, D=1, K=1), id="one-of-everything"),
    pytest.param(dict(B=0, L=5, D=90, K=2), id="unused-features"),
    pytest.param(dict(B=0, L=5, D=70_000, K=3, index_dtype=torch.int32), id="int32"),
]


def check(indices, in_features):
    offsets, positions = (t.cpu() for t in ops.transpose_indices(indices, in_features))
    assert (offsets.dtype, positions.dtype) == (torch.int64, torch.int32)
    assert offsets.shape == (in_features + 1,) and offsets[0] == 0 and offsets[-1] == indices.numel()
    flat = indices.cpu().long().flatten()
    order = torch.argsort(flat, stable=True)
    assert torch.equal(positions.long(), order)
    assert torch.equal(offsets.diff(), torch.bincount(flat, minlength=in_features))


@pytest.mark.parametrize("shape", SHAPES)
def test_lists_every_connection_in_order(shape, device):
    check(oracle.make_problem(**shape, device=device).indices, shape["D"])


def test_non_contiguous(device):
    indices = oracle.make_problem(0, 21, 20, 6, device=device).indices
    check(indices[::2, 1::2], 20)


def test_opcheck(device):
    indices = oracle.make_problem(0, 21, 20, 6, device=device).indices
    torch.library.opcheck(transpose_op, (indices, 20))


@pytest.fixture
def calls(device, monkeypatch):
    """The number of times that an index was really inverted."""
    module = kernels("transpose", torch.empty(0, device=device))
    run, seen = module.transpose_indices, []
    monkeypatch.setattr(module, "transpose_indices", lambda *a: (seen.append(a), run(*a))[1])
    return seen


def test_cached_until_the_topology_changes(device, calls):
    indices = oracle.make_problem(0, 21, 20, 6, device=device).indices
    first = ops.transpose_indices(indices, 20)
    assert ops.transpose_indices(indices, 20) is first and len(calls) == 1
    ops.transpose_indices(indices, 30)
    assert len(calls) == 2
    indices.copy_(oracle.make_problem(0, 21, 20, 6, device=device, seed=1).indices)
    check(indices, 20)
    ops.transpose_indices(indices.clone(), 20)
    assert len(calls) == 4


def test_rewiring_invalidates(device, calls):
    indices = oracle.make_problem(0, 21, 20, 6, device=device).indices
    weight = torch.randn(21, 6, device=device)
    ops.transpose_indices(indices, 20)
    ops.prune_regrow_(weight, indices, 20, fraction=0.5, seed=0)
    check(indices, 20)
    assert len(calls) == 2


def test_the_cache_does_not_keep_topologies_alive(device):
    gc.collect()
    before = len(_topology_cache._entries)
    indices = oracle.make_problem(0, 21, 20, 6, device=device).indices
    ops.transpose_indices(indices, 20)
    assert len(_topology_cache._entries) == before + 1
    del indices
    gc.collect()
    assert len(_topology_cache._entries) == before


def test_inference_tensors_are_not_remembered(device, calls):
    with torch.inference_mode():
        indices = oracle.make_problem(0, 21, 20, 6, device=device).indices
        ops.transpose_indices(indices, 20)
        ops.transpose_indices(indices, 20)
    assert len(calls) == 2


def test_what_a_graph_will_compute_is_not_remembered(device, calls, monkeypatch):
    """While a CUDA graph is captured nothing is computed yet; what was known before serves the capture too."""
    indices = oracle.make_problem(0, 21, 20, 6, device=device).indices
    monkeypatch.setattr(_topology_cache, "capturing", lambda tensor: True)
    ops.transpose_indices(indices, 20)
    ops.transpose_indices(indices, 20)
    assert len(calls) == 2
    monkeypatch.setattr(_topology_cache, "capturing", lambda tensor: False)
    ops.transpose_indices(indices, 20)
    monkeypatch.setattr(_topology_cache, "capturing", lambda tensor: True)
    ops.transpose_indices(indices, 20)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("indices", "in_features", "error", "message"),
    [
        (torch.zeros(2, 3), 4, TypeError, "indices must be torch.uint16, got torch.float32"),
        (
            torch.zeros(3, dtype=torch.int32),
            4,
            ValueError,
            r"indices must be \[rows, fan_in\] with .*, got shape \[3\]",
        ),
        (torch.zeros(0, 3, dtype=torch.int32), 4, ValueError, r"at least one connection, got shape \[0, 3\]"),
        (torch.zeros(2, 3, dtype=torch.int32), 0, ValueError, "in_features must be at least 1, got 0"),
        ([[1]], 4, TypeError, "indices must be a torch.Tensor, got list"),
    ],
)
def test_bad_arguments(indices, in_features, error, message):
    with pytest.raises(error, match=message):
        ops.transpose_indices(indices, in_features)
