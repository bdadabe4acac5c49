"""informed_indices against dense centroids."""

import warnings

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.ops import _regrow
from sparse_xmc.ops._arguments import validate_indices

warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")


def problem(N=14, D=12, L=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator) + 1
    targets = (torch.rand(N, L, generator=generator) < 0.3).float()
    targets[:, 4] = 0
    return x, targets


@pytest.mark.parametrize("G", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_equals_dense_centroids(device, monkeypatch, G, dtype, block):
    monkeypatch.setattr(_regrow, "BLOCK_ELEMENTS", block)
    x, targets = problem()
    x = x.to(dtype)
    chosen = ops.informed_indices(x.to(device), targets.to_sparse_csr().to(device), 5, group_size=G)
    validate_indices(chosen, 12)
    dense = x.double()
    counts = targets.double().sum(0)[:, None]
    contrast = ((targets.double().T @ dense) / counts.clamp(min=1) - dense.mean(0)).abs() * (counts > 0)
    for row, part in enumerate(contrast.split(G)):
        if part.sum() > 0:
            assert set(chosen[row].tolist()) == set(part.sum(0).topk(5).indices.tolist())


def test_repeated_entries_count_once_and_values_are_ignored(device):
    x, _ = problem(N=4)
    crow, columns = torch.tensor([0, 3, 4, 4, 5]), torch.tensor([1, 1, 2, 1, 0])
    twice = torch.sparse_csr_tensor(crow, columns, torch.zeros(5), (4, 3))
    once = torch.tensor([[0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]]).float().to_sparse_csr()
    a, b = (ops.informed_indices(x.to(device), t.to(device), 5) for t in (twice, once))
    assert torch.equal(a, b)


def test_labels_without_positives_get_random_features(device):
    x, _ = problem()
    empty = torch.zeros(14, 200).to_sparse_csr().to(device)
    chosen = ops.informed_indices(x.to(device), empty, 3, seed=1)
    assert torch.equal(chosen, ops.init_indices(200, 12, 3, seed=1, device=device))


@pytest.mark.parametrize(
    ("fan_in", "targets", "error", "message"),
    [
        (13, torch.zeros(14, 9).to_sparse_csr(), ValueError, "fan_in must not exceed in_features"),
        (3, torch.zeros(13, 9).to_sparse_csr(), ValueError, r"targets must be \[14, 9\], got \[13, 9\]"),
        (3, torch.zeros(14, 9), TypeError, "targets must be a torch.sparse_csr tensor"),
    ],
)
def test_bad_arguments_raise(fan_in, targets, error, message):
    with pytest.raises(error, match=message):
        ops.informed_indices(problem()[0], targets, fan_in)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_not_finite_are_named(device, dtype, value):
    x, targets = problem()
    x = x.to(dtype)
    x[3, 7] = value
    with pytest.raises(ValueError, match="x must be finite: row 3"):
        ops.informed_indices(x.to(device), targets.to_sparse_csr().to(device), 5)
