"""fixed_fan_in_topk against a sort of the dense oracle's scores."""

import subprocess
import sys

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.ops.topk import topk_op
from tests import oracle
from tests.conftest import INTERPRETING

SHAPES = [
    pytest.param(dict(B=5, L=70, D=30, K=7), 3, id="plain"),
    pytest.param(dict(B=1, L=33, D=16, K=4), 1, id="one-row"),
    pytest.param(dict(B=3, L=9, D=6, K=6), 9, id="all-labels"),
    pytest.param(dict(B=2, L=1, D=1, K=1), 1, id="one-of-everything"),
    pytest.param(dict(B=3, L=53, D=40, K=24, G=20), 5, id="short-last-group"),
    pytest.param(dict(B=2, L=15, D=70_000, K=3, index_dtype=torch.int32), 4, id="int32-indices"),
]


def exact_problem(dtype=torch.float32, **shape):
    """Small integers: every sum is exact in every dtype, and equal scores abound."""
    problem = oracle.make_problem(**shape)
    x, weight, bias = (t.mul(2).round().clamp(-3, 3).to(dtype) for t in (problem.x, problem.weight, problem.bias))
    return problem._replace(x=x, weight=weight, bias=bias)


def expected_topk(problem, k, excluded=None):
    x, weight, indices, bias, G = problem
    dense = oracle.dense_weight(weight, indices, x.shape[-1], G)
    scores = x.cpu().double() @ dense.t() + bias.cpu().double()
    if excluded is not None:
        scores[excluded] = -torch.inf
    best = scores.sort(dim=1, descending=True, stable=True)
    return best.values[:, :k], best.indices[:, :k]


def run(problem, k, **options):
    x, weight, indices, bias, G = problem
    return tuple(t.cpu() for t in ops.fixed_fan_in_topk(x, weight, indices, bias, k=k, group_size=G, **options))


@pytest.mark.parametrize(("shape", "k"), SHAPES)
def test_equals_a_stable_sort(shape, k, device):
    problem = exact_problem(**shape, device=device)
    scores, labels = run(problem, k)
    truth = expected_topk(problem, k)
    assert torch.equal(labels, truth[1]) and torch.equal(scores.double(), truth[0])


@pytest.mark.parametrize("k", [1, 3, 7, 20])
@pytest.mark.parametrize("G", [8, 16, 100])
def test_equal_scores_in_several_groups_go_by_label(G, k, device):
    problem = exact_problem(B=3, L=131, D=24, K=8, G=G, device=device)
    problem.weight.zero_()
    problem.bias.zero_()
    problem.bias[[5, 40, 41, 77, 90, 130]] = 2.0
    scores, labels = run(problem, k)
    truth = expected_topk(problem, k)
    assert torch.equal(labels, truth[1]) and torch.equal(scores.double(), truth[0])


def test_nan_comes_before_infinity_in_another_group(device):
    problem = exact_problem(B=2, L=64, D=24, K=8, G=16, device=device)
    problem.bias[3], problem.bias[50], problem.bias[63] = float("inf"), float("nan"), float("inf")
    problem.bias[20:40] = -float("inf")
    scores, labels = run(problem, 3)
    assert labels.tolist() == [[50, 3, 63]] * 2
    assert scores[:, 0].isnan().all() and scores[:, 1:].isposinf().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("G", [1, 16])
def test_dtypes(dtype, G, device):
    problem = exact_problem(dtype, B=4, L=50, D=20, K=6, G=G, device=device)
    scores, labels = run(problem, 5)
    truth = expected_topk(problem, 5)
    assert scores.dtype == dtype and torch.equal(labels, truth[1])
    assert torch.equal(scores.double(), truth[0].to(dtype).double())


@pytest.mark.parametrize("G", [1, 16])
def test_float64_scores_are_compared_in_float64(G, device):
    """The scores differ by less than float32 can tell; one of the best is excluded."""
    x, weight, indices, _, _ = exact_problem(torch.float64, B=2, L=50, D=20, K=6, G=G, device=device)
    bias = 1 + torch.randperm(50, generator=torch.Generator().manual_seed(0)).double() * 2.0**-40
    problem = oracle.Problem(x, torch.zeros_like(weight), indices, bias.to(device), G)
    best = expected_topk(problem, 7)[1]
    excluded = torch.zeros(2, 50, dtype=torch.bool)
    excluded[1, best[1, 2]] = True
    exclude = excluded.double().to_sparse_csr().to(device)
    scores, labels = run(problem, 6, exclude=exclude)
    truth = expected_topk(problem, 6, excluded)
    assert torch.equal(labels, truth[1]) and torch.equal(scores, truth[0])


@pytest.mark.skipif(INTERPRETING, reason="thousands of interpreted programs")
@pytest.mark.parametrize(("G", "k"), [(1, 5), (1, 100), (32, 5)])
def test_larger_layers_and_threads(G, k, device):
    problem = exact_problem(B=70, L=5003, D=64, K=16, G=G, device=device)
    truth = expected_topk(problem, k)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            scores, labels = run(problem, k)
            assert torch.equal(labels, truth[1]) and torch.equal(scores.double(), truth[0])
    finally:
        torch.set_num_threads(before)


def test_no_bias_leading_dimensions_and_empty_batch(device):
    x, weight, indices, bias, _ = exact_problem(B=6, L=20, D=12, K=4, device=device)
    scores, labels = ops.fixed_fan_in_topk(x.view(2, 3, 12), weight, indices, k=4)
    problem = oracle.Problem(x, weight, indices, torch.zeros_like(bias), 1)
    assert scores.shape == labels.shape == (2, 3, 4)
    assert torch.equal(labels.cpu().view(6, 4), expected_topk(problem, 4)[1])
    empty = ops.fixed_fan_in_topk(x[:0], weight, indices, bias, k=4)
    assert [t.shape for t in empty] == [(0, 4), (0, 4)] and empty[1].dtype == torch.int64


def test_equal_scores_go_by_label(device):
    problem = exact_problem(B=3, L=40, D=12, K=4, device=device)
    problem = problem._replace(weight=torch.zeros_like(problem.weight), bias=torch.zeros_like(problem.bias))
    assert torch.equal(run(problem, 6)[1], torch.arange(6).expand(3, 6))


def test_not_a_number_leads_and_infinities_count(device):
    problem = exact_problem(B=3, L=40, D=12, K=4, device=device)
    bias = torch.full_like(problem.bias, -torch.inf)
    bias[[7, 30]] = torch.nan
    bias[12] = torch.inf
    scores, labels = run(problem._replace(bias=bias), 5)
    assert torch.equal(labels, torch.tensor([7, 30, 12, 0, 1]).expand(3, 5))
    assert scores[:, :2].isnan().all() and (scores[:, 2] == torch.inf).all() and (scores[:, 3:] == -torch.inf).all()


@pytest.mark.parametrize("k", [1, 10])
def test_exclude(k, device):
    problem = exact_problem(B=4, L=40, D=12, K=4, device=device)
    best = expected_topk(problem, 20)[1]
    excluded = torch.zeros(4, 40, dtype=torch.bool)
    excluded[1, best[1, :20]] = True
    excluded[2, best[2, ::2]] = True
    excluded[3, :30] = True
    crow = torch.tensor([0, 0, 20, 30, 61])
    unsorted = [best[1, :20], best[2, ::2], torch.arange(30).flip(0), torch.tensor([3])]
    col = torch.cat(unsorted)
    exclude = torch.sparse_csr_tensor(crow, col, torch.ones(61), (4, 40), check_invariants=False).to(device)
    scores, labels = run(problem, k, exclude=exclude)
    truth = expected_topk(problem, k, excluded)
    assert torch.equal(labels, truth[1]) and torch.equal(scores.double(), truth[0])


def test_opcheck_and_compile(device):
    x, weight, indices, bias, _ = exact_problem(B=4, L=40, D=12, K=4, device=device)
    torch.library.opcheck(topk_op, (x, weight, indices, bias, 3, 1, None, None))
    offsets, labels = torch.tensor([0, 1, 1, 2, 2], device=device), torch.tensor([5, 6], device=device)
    torch.library.opcheck(topk_op, (x, weight, indices, None, 3, 1, offsets, labels))

    def f(x):
        return ops.fixed_fan_in_topk(x, weight, indices, bias, k=3)

    torch._dynamo.reset()
    got = torch.compile(f, fullgraph=True, backend="aot_eager")(x)
    assert all(torch.equal(a, b) for a, b in zip(got, f(x), strict=True))


def test_no_gradient(device):
    x, weight, indices, bias, _ = exact_problem(B=4, L=40, D=12, K=4, device=device)
    scores, _ = ops.fixed_fan_in_topk(x.requires_grad_(), weight.requires_grad_(), indices, bias, k=2)
    assert not scores.requires_grad


def csr(crow, col, shape):
    return torch.sparse_csr_tensor(
        torch.tensor(crow), torch.tensor(col), torch.ones(len(col)), shape, check_invariants=False
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(k=0), ValueError, "k must be at least 1, got 0"),
        (dict(k=2.0), TypeError, "k must be an int, got 2.0"),
        (dict(k=41), ValueError, r"number of labels: k=41, weight \[40, 4\]"),
        (dict(k=2, exclude="all"), TypeError, "exclude must be a torch.sparse_csr or sparse_coo tensor.*, got str"),
        (dict(k=2, exclude=[[1], [2]]), ValueError, "exclude must hold one list of labels for each of 3 rows, got 2"),
        (dict(k=2, exclude=csr([0, 0], [], (1, 40))), ValueError, r"exclude must be \[3, 40\], got \[1, 40\]"),
        (dict(k=2, exclude=csr([0, 0, 1, 1], [40], (3, 40))), ValueError, r"label 40, outside \[0, 40\)"),
        (
            dict(k=39, exclude=csr([0, 0, 2, 2], [4, 5], (3, 40))),
            ValueError,
            "labels that are left: k=39, row 1 has 38",
        ),
    ],
)
def test_bad_arguments(options, error, message):
    x, weight, indices, bias, _ = exact_problem(B=3, L=40, D=12, K=4)
    with pytest.raises(error, match=message):
        ops.fixed_fan_in_topk(x, weight, indices, bias, **options)


_PEAK = """
import resource, torch
from sparse_xmc import ops
B, L, D, K = 64, 500_000, 64, 2
x, weight, bias = torch.randn(B, D), torch.randn(L, K), torch.randn(L)
indices = (torch.arange(L)[:, None] * 7 + torch.tensor([0, 3])).remainder(D).to(torch.uint16)
ops.fixed_fan_in_topk(x, weight[:1000], indices[:1000], bias[:1000], k=5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ops.fixed_fan_in_topk(x, weight, indices, bias, k=5)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(INTERPRETING or not sys.platform.startswith("linux"), reason="CPU kernels; ru_maxrss in KiB")
def test_logits_are_never_in_memory():
    grown = int(subprocess.run([sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True).stdout)
    assert grown < 0.1 * 64 * 500_000 * 4
