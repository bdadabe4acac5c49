"""The fused loss and its in-place step against the dense float64 oracle."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from sparse_xmc import ops
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.ops import reference
from sparse_xmc.ops._contract import Layer, Objective
from sparse_xmc.ops._targets import sorted_positives
from sparse_xmc.ops.loss import Problem, head_gradients, head_loss
from sparse_xmc.ops.step import head_step_
from tests import oracle
from tests.conftest import INTERPRETING

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
KINDS = ("bce", "squared_hinge")
# B, L, D, K, G: one row; a padded chunk and a short group; several chunks; several tiles of labels
SHAPES = (
    [(1, 5, 9, 3, 1), (20, 21, 30, 8, 4)]
    if INTERPRETING
    else [(1, 5, 9, 3, 1), (20, 37, 30, 8, 5), (150, 300, 40, 19, 1)]
)


def problem_and_targets(shape, dtype, device="cpu", **options):
    problem = oracle.make_problem(*shape, dtype=dtype, device=device, **options)
    dense = (torch.rand(shape[0], shape[1], generator=torch.Generator().manual_seed(1)) < 0.1).int()
    dense[0, 0] = 2  # a duplicate
    return problem, dense, oracle.make_targets(dense).to(device)


def run(problem, targets, kind, reduction="sum", need=(True, True, True), upstream=1.0):
    x, weight, indices, bias, G = problem
    leaves = [t.clone().requires_grad_(n) for t, n in zip((x, weight, bias), need, strict=True)]
    value = ops.fixed_fan_in_loss(
        leaves[0], leaves[1], indices, leaves[2], targets, loss=kind, reduction=reduction, group_size=G
    )
    if any(need):
        (value * upstream).backward()
    return value.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16] if INTERPRETING else [F32, BF16, F16, F64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients(shape, dtype, kind, device):
    problem, dense, targets = problem_and_targets(shape, dtype, device)
    truth = oracle.loss(problem, dense, kind)
    for reduction, divisor in (("sum", 1), ("mean", shape[0])):
        value, gradients = run(problem, targets, kind, reduction, upstream=0.5)
        assert value.dtype == (F64 if dtype == F64 else F32) and value.shape == ()
        torch.testing.assert_close(
            value.cpu().double(), truth.value / divisor, rtol=1e-5 if dtype != F64 else 1e-12, atol=0
        )
        for name, got, expected in zip(("dx", "dw", "db"), gradients, truth[1:], strict=True):
            expected = expected * (0.5 / divisor)
            # operands of tensor core products may be rounded to the input's dtype first
            peer = expected.to(dtype) if dtype != BF16 and dtype != F16 else expected + expected.abs().max() * 2**-8
            oracle.assert_accurate(name, got, expected, peer, ulps=16)


@pytest.mark.parametrize("kind", KINDS)
def test_reference_agrees_with_the_oracle(kind):
    problem, dense, targets = problem_and_targets((7, 13, 9, 4, 3), F64)
    x, weight, indices, bias, G = problem
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    value = reference.fixed_fan_in_loss(
        leaves[0], leaves[1], indices, leaves[2], targets, loss=kind, reduction="sum", group_size=G
    )
    for got, expected in zip(
        (value, *torch.autograd.grad(value, leaves)), oracle.loss(problem, dense, kind), strict=True
    ):
        torch.testing.assert_close(got, expected)


def strided(tensor):
    """The same values with gaps between them."""
    return torch.stack([tensor, torch.ones_like(tensor)], dim=-1)[..., 0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group_size", [1, 16])
def test_inputs_that_are_not_contiguous(group_size, kind, device):
    problem, dense, targets = problem_and_targets((20, 37, 64, 32, group_size), F32, device)
    value, gradients = run(problem, targets, kind)
    x, weight, indices, bias, G = problem
    apart = problem._replace(
        x=x.t().contiguous().t(), weight=strided(weight), indices=strided(indices), bias=strided(bias)
    )
    assert not apart.weight.is_contiguous() and not apart.bias.is_contiguous()
    leaves = [t.requires_grad_() for t in (apart.x, apart.weight, apart.bias)]
    again = ops.fixed_fan_in_loss(
        leaves[0], leaves[1], apart.indices, leaves[2], targets, loss=kind, reduction="sum", group_size=G
    )
    torch.testing.assert_close(again.detach(), value)
    for got, expected in zip(torch.autograd.grad(again, leaves), gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_mixed_dtypes_and_leading_dimensions(device):
    x, weight, indices, bias, G = oracle.make_problem(6, 10, 12, 4, dtype=BF16, device=device)
    problem = oracle.Problem(x, weight.float(), indices, bias.float(), G)
    dense = torch.eye(6, 10).int()
    truth = oracle.loss(problem, dense, "bce")
    leaf = x.reshape(2, 3, 12).clone().requires_grad_()
    value = ops.fixed_fan_in_loss(
        leaf, problem.weight, indices, problem.bias, oracle.make_targets(dense).to(device), reduction="sum"
    )
    value.backward()
    assert leaf.grad.dtype == BF16
    torch.testing.assert_close(value.cpu().double(), truth.value, rtol=1e-5, atol=0)
    torch.testing.assert_close(leaf.grad.cpu().double().reshape(6, 12), truth.dx, rtol=2e-2, atol=2e-2)


def test_extreme_logits_and_the_gradient_at_zero(device):
    """softplus and its derivative over the whole range; the published expression gives gradient 1 at logit 0."""
    logits = torch.tensor([0.0, -1e4, 1e4, -100.0, 100.0, -1.0, 20.0, -20.0], device=device)
    L = len(logits)
    indices = torch.zeros(L, 1, dtype=torch.uint16, device=device)
    for positive in (False, True):
        targets = oracle.make_targets(torch.full((1, L), int(positive))).to(device)
        x = torch.ones(1, 1, device=device)
        weight, bias = logits[:, None].clone().requires_grad_(), torch.zeros(L, device=device, requires_grad=True)
        value = ops.fixed_fan_in_loss(x, weight, indices, bias, targets, reduction="sum")
        value.backward()
        signed = (-logits if positive else logits).double().cpu()
        torch.testing.assert_close(
            value.cpu().double(), F.softplus(signed, threshold=1000).sum(), rtol=1e-6, atol=1e-30
        )
        expected = torch.sigmoid(signed) * (-1 if positive else 1)
        torch.testing.assert_close(bias.grad.cpu().double(), expected, rtol=1e-5, atol=1e-37)
        assert bias.grad[0] == (-0.5 if positive else 0.5)


def test_tiny_probabilities_are_not_lost(device):
    """100 labels at logit -20 have a loss of 2.06e-7 in all: 1 + exp(-20) is 1.0000000021 and rounds to 1 in float32."""
    x, weight = torch.ones(1, 1, device=device), torch.full((100, 1), -20.0, device=device)
    indices = torch.zeros(100, 1, dtype=torch.uint16, device=device)
    value = ops.fixed_fan_in_loss(x, weight, indices, None, oracle.make_targets(torch.zeros(1, 100)).to(device))
    torch.testing.assert_close(value.item(), 100 * 2.0611536e-9, rtol=1e-4, atol=0)


def test_empty_batch_and_no_positives(device):
    problem, _, _ = problem_and_targets((1, 5, 9, 3, 1), F32, device)
    for B in (0, 3):
        x = torch.randn(B, 9).to(device)
        positive = torch.zeros(B, 5)
        value, gradients = run(problem._replace(x=x), oracle.make_targets(positive).to(device), "bce", "mean")
        truth = oracle.loss(problem._replace(x=x), positive, "bce")
        torch.testing.assert_close(value.cpu().double(), truth.value / max(1, B), rtol=1e-5, atol=0)
        for got, expected in zip(gradients, truth[1:], strict=True):
            torch.testing.assert_close(got.cpu().double(), expected / max(1, B), rtol=1e-5, atol=1e-6)


def test_hinge_without_violations_has_no_gradient(device):
    """Rows whose margins all hold are exactly zero, and the weights of such labels stay as they are."""
    x = torch.ones(2, 1, device=device)
    weight, indices = torch.full((4, 1), -2.0, device=device), torch.zeros(4, 1, dtype=torch.uint16, device=device)
    targets = oracle.make_targets(torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]])).to(device)
    _, (dx, dw, _) = run(oracle.Problem(x, weight, indices, torch.zeros(4, device=device), 1), targets, "squared_hinge")
    assert dw[:3].abs().max() == 0 and dx[1].abs().max() == 0
    assert dw[3] == -6 and dx[0] == 12


@pytest.mark.parametrize(
    "need", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)]
)
def test_only_needed_gradients(need, device):
    problem, dense, targets = problem_and_targets((4, 6, 9, 3, 1), F32, device)
    _, gradients = run(problem, targets, "bce", need=need)
    truth = oracle.loss(problem, dense, "bce")[1:]
    for needed, got, expected in zip(need, gradients, truth, strict=True):
        assert (got is not None) == needed
        if needed:
            torch.testing.assert_close(got.cpu().double(), expected, rtol=1e-4, atol=1e-5)


BROKEN = [
    ([0, 2, 3, 4], [-1, 2, 0, 5], r"label -1 \(entry 0\), outside \[0, 6\)"),
    ([0, 2, 3, 4], [1, 2, 2**40, 5], r"label 1099511627776 \(entry 2\), outside \[0, 6\)"),
    ([0, 2, 3, 4], [1, 2, 0, 6], r"label 6 \(entry 3\), outside \[0, 6\)"),
    ([1, 2, 3, 4], [1, 2, 0, 5], "must start with 0, got 1"),
    ([0, 2, 1, 4], [1, 2, 0, 5], "must not descend, got 2 before 1 at row 1"),
    ([0, 2, 3, 5], [1, 2, 0, 5], "must end with the number of entries 4, got 5"),
    ([0, 2, 3, 3], [1, 2, 0, 5], "must end with the number of entries 4, got 3"),
]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize(("crow", "col", "message"), BROKEN)
def test_targets_are_checked_before_a_kernel_reads_them(crow, col, message, dtype, device):
    """Of every op that takes targets, with its value; a GPU asserts it later (``triton_kernels/targets.py``)."""
    if dtype == torch.int32 and max(col) >= 2**31:
        pytest.skip("no such int32 label")
    problem, _, _ = problem_and_targets((3, 6, 9, 3, 1), F32, device)
    pair = tuple(torch.tensor(part, dtype=dtype, device=device) for part in (crow, col))
    csr = torch.sparse_csr_tensor(*pair, torch.ones(4, device=device), (3, 6), check_invariants=False)
    if device.type == "cuda":
        pytest.skip("a failed device assert ends the CUDA context")
    error, message = (RuntimeError, "targets") if INTERPRETING else (ValueError, message)
    for targets in (pair, csr):
        with pytest.raises(error, match=message):
            run(problem, targets, "bce")
        with pytest.raises(error, match=message):
            ops.sort_targets(targets, 6)


def test_sorted_positives():
    """Ascending labels, rows ascending in each label, repeats marked with B; from unsorted int32 rows."""
    targets = torch.sparse_csr_tensor(
        torch.tensor([0, 3, 3, 5], dtype=torch.int32), torch.tensor([4, 1, 4, 1, 0], dtype=torch.int32),
        torch.ones(5), (3, 6), check_invariants=False,
    )  # fmt: skip
    labels, rows, *sizes = sorted_positives(targets, 3, 6)
    assert sizes == [3, 6]
    assert labels.tolist() == [0, 1, 1, 4, 4] and labels.dtype == torch.int64
    assert rows.tolist() == [2, 0, 2, 0, 3] and rows.dtype == torch.int32


def test_errors_name_the_argument():
    (x, weight, indices, bias, _), _, targets = problem_and_targets((3, 6, 9, 3, 1), F32)
    call = ops.fixed_fan_in_loss
    with pytest.raises(ValueError, match="loss must be .* got 'hinge'"):
        call(x, weight, indices, bias, targets, loss="hinge")
    with pytest.raises(ValueError, match="reduction must be .* got 'none'"):
        call(x, weight, indices, bias, targets, reduction="none")
    with pytest.raises(
        TypeError, match="targets must be a torch.sparse_csr or .* list of lists of label ids, got dict"
    ):
        call(x, weight, indices, bias, {})
    with pytest.raises(ValueError, match=r"targets must be \[3, 6\], got \[2, 6\]"):
        call(x, weight, indices, bias, oracle.make_targets(torch.zeros(2, 6)))


@pytest.mark.skipif(INTERPRETING, reason="float64 in the interpreter is slow and shown by the values above")
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    problem, _, targets = problem_and_targets((3, 7, 6, 3, 2), F64)
    x, weight, indices, bias, G = problem
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    assert torch.autograd.gradcheck(
        lambda x, w, b: ops.fixed_fan_in_loss(x, w, indices, b, targets, loss=kind, group_size=G), leaves
    )


@pytest.mark.skipif(INTERPRETING, reason="about the registration, which does not depend on the kernels")
def test_opcheck():
    (x, weight, indices, bias, G), _, targets = problem_and_targets((3, 6, 9, 3, 1), F32)
    positives = sorted_positives(targets, 3, 6)
    for goal in (Objective(), Objective("asymmetric", torch.ones(6), torch.ones(3), 1.0, 2.0, 0.1)):
        arguments = Problem(x, Layer(weight, indices, bias, G), positives, goal, 1.0, True).pack()
        torch.library.opcheck(head_loss, arguments)
        torch.library.opcheck(head_gradients, (*arguments, torch.tensor(0.5), (True, True, True)))
        torch.library.opcheck(head_gradients, (*arguments, torch.tensor(0.5), (False, True, False)))
        scales, numbers = (torch.tensor(1.0), torch.tensor(0.5)), (0.1, 0.9, 0.0, 0.9, 0.1, 1e-8)
        state = [torch.zeros(6, 3), torch.zeros(6), torch.zeros(6), torch.zeros(6), torch.zeros((), dtype=F64)]
        torch.library.opcheck(
            head_step_, (*arguments, *scales, state, [None] * 3, numbers, (1, 1, 1, 31), (True, True))
        )
        scalars = [torch.tensor(2.0), torch.tensor(0.1, dtype=F64), torch.tensor(3)]
        torch.library.opcheck(head_step_, (*arguments, None, None, [], scalars, numbers, (1, 1, 0, 0), (False, False)))


@pytest.mark.skipif(INTERPRETING, reason="about torch.compile, which does not depend on the kernels")
@pytest.mark.parametrize("loss", ["bce", "squared_hinge"])
def test_compiles_without_a_graph_break(loss):
    """The op and the layer, with targets as a pair: torch.compile takes no sparse tensor into a graph."""
    (x, weight, indices, bias, G), _, targets = problem_and_targets((3, 6, 9, 3, 1), F32)
    layer = FixedFanInLinear(9, 6, 3, seed=0)
    x = x.requires_grad_()
    leaves = [x, weight.requires_grad_(), bias.requires_grad_(), *layer.parameters()]

    def call(x, targets):
        op = ops.fixed_fan_in_loss(x.tanh(), weight, indices, bias, targets, loss=loss, group_size=G)
        return op + layer.loss(x, targets, loss=loss)

    pair = (targets.crow_indices(), targets.col_indices())
    eager = torch.autograd.grad(call(x, targets), leaves)
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for a, b in zip(eager, torch.autograd.grad(compiled(x, pair), leaves), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="does not support sparse"):
        compiled(x, targets)
    torch.testing.assert_close(
        torch.compile(call, backend="aot_eager")(x, targets), call(x, targets)
    )  # breaks the graph


@pytest.mark.parametrize(
    ("pair", "error", "message"),
    [
        ((torch.zeros(4).long(),), ValueError, "one list of labels for each of 3 rows, got 1"),
        ((torch.zeros(4), torch.zeros(2).long()), TypeError, r"targets\[0\] must be a 1-D int32 or int64 tensor"),
        (
            (torch.zeros(4).long(), torch.zeros(2, 1).long()),
            TypeError,
            r"targets\[1\] must be .* got torch.int64 \[2, 1\]",
        ),
        ((torch.zeros(3).long(), torch.zeros(2).long()), ValueError, "must hold 4 row offsets for 3 rows, got 3"),
    ],
)
def test_bad_pairs_of_targets(pair, error, message):
    (x, weight, indices, bias, G), _, _ = problem_and_targets((3, 6, 9, 3, 1), F32)
    with pytest.raises(error, match=message):
        ops.fixed_fan_in_loss(x, weight, indices, bias, pair, group_size=G)


def test_autocast_casts_the_input(device):
    problem, _, targets = problem_and_targets((4, 6, 9, 3, 1), F32, device)
    x, weight, indices, bias, _ = problem
    with torch.autocast(device.type, torch.bfloat16):
        leaf = x.clone().requires_grad_()
        got = ops.fixed_fan_in_loss(leaf, weight, indices, bias, targets)
    got.backward()
    assert leaf.grad.dtype == F32
    torch.testing.assert_close(got, ops.fixed_fan_in_loss(x.bfloat16(), weight, indices, bias, targets))


def test_thread_count_does_not_change_a_bit():
    if INTERPRETING:
        pytest.skip("about the CPU kernels' threads")
    problem, _, targets = problem_and_targets((70, 2500, 40, 16, 1), F32)  # enough work for all 16 ranges of labels
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            value, gradients = run(problem, targets, "bce")
            results.append([value, *gradients])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.skipif(INTERPRETING, reason="about the CPU kernels' threads")
@pytest.mark.parametrize(("L", "parts", "group_size"), [(1, 0, 1), (100, 3, 1), (40, 99, 1), (200_003, 99, 32)])
def test_ranges_of_labels_cover_all_in_whole_groups(L, parts, group_size):
    from sparse_xmc.ops.cpu_kernels.loss import _label_ranges  # needs Numba

    ranges = _label_ranges(L, parts, group_size)
    assert len(ranges) <= max(1, min(parts, 16))
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])] and ranges[-1][1] == L
    assert all(start < stop and start % group_size == 0 for start, stop in ranges)


_MEMORY = """
import resource, torch
from sparse_xmc import ops
from sparse_xmc.optim.fused import FusedSGD
L, D, K, B = {L}, 128, 8, 64
weight, bias = torch.zeros(L, K, requires_grad=True), torch.zeros(L, requires_grad=True)
indices = torch.arange(8).repeat(L, 1).to(torch.uint16)
x, targets = torch.randn(B, D), torch.eye(B, L).to_sparse_csr()
optimizer = FusedSGD(0.1)
optimizer.attach(weight, bias)
few = 1000  # everything is compiled and allocated once
small = [t[:few].detach().clone().requires_grad_() for t in (weight, bias)]
warm = FusedSGD(0.1)
warm.attach(*small)
ops.fixed_fan_in_step_(x, small[0], indices[:few], small[1], torch.eye(B, few).to_sparse_csr(), warm)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for _ in range(2):
    loss, dx = ops.fixed_fan_in_step_(x, weight, indices, bias, targets, optimizer)
    assert float(loss) > 0
print(peak() - before, B * L * 4)
"""


@pytest.mark.skipif(
    INTERPRETING or sys.platform != "linux", reason="measures resident memory of the CPU kernels on Linux"
)
def test_a_step_needs_no_logits_in_memory():
    """A fused step at 400k labels grows the process by less than 10 % of one float32 logit matrix (102 MB)."""
    done = subprocess.run([sys.executable, "-c", _MEMORY.format(L=400_000)], capture_output=True, text=True, check=True)
    growth, logits = map(int, done.stdout.split())
    assert growth < 0.1 * logits, f"grew by {growth / 1e6:.1f} MB; a logit matrix takes {logits / 1e6:.1f} MB"
