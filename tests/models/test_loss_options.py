"""Weights of labels and rows, the asymmetric loss and means: the same number from every head, against dense float64."""

import pytest
import torch
from torch.nn import functional as F

from sparse_xmc.distributed import LabelShardedLinear
from sparse_xmc.models import DenseLinear, FixedFanInLinear, HeadTailLinear, SparseInputLinear
from sparse_xmc.optim import FusedSGD
from tests.conftest import INTERPRETING

B, D, L, K = 6, 16, 12, 4
LISTS = [[3, 11, 0], [], [7, 7, 2], [11], [1], [5, 6]]
HEADS = {
    "fixed_fan_in": lambda: FixedFanInLinear(D, L, K, seed=1),
    "groups": lambda: FixedFanInLinear(D, L, K, group_size=4, seed=1),
    "dense": lambda: DenseLinear(D, L, seed=1),
    "head_tail": lambda: HeadTailLinear(D, L, K, num_head=5, seed=1),
    "sharded": lambda: LabelShardedLinear(D, L, K, seed=1),
    "sparse_input": lambda: SparseInputLinear(D, L, K, seed=1),
    "sparse_input_groups": lambda: SparseInputLinear(D, L, K, group_size=4, seed=1),
}
every_head = pytest.mark.parametrize("name", HEADS)


def problem(head, scale=1.0):
    """Rows as the head takes them, their targets as multi-hot rows, and weights."""
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(B, D, generator=generator)
    x = x.to_sparse_csr() if isinstance(head, SparseInputLinear) else x.requires_grad_()
    positive = torch.zeros(B, L)
    for row, labels in enumerate(LISTS):
        positive[row, labels] = 1
    weights = {
        "pos_weight": 0.5 + torch.rand(L, generator=generator),
        "sample_weight": torch.rand(B, generator=generator),
    }
    return x, positive, weights


def expected(z, positive, kind, pos_weight=None, sample_weight=None, gamma_pos=0.0, gamma_neg=4.0, clip=0.05):
    """The sum, in float64, from the formulas."""
    z, t = z.double(), positive.double()
    if kind == "squared_hinge":
        gained, lost = (1 - z).clamp(min=0) ** 2, (1 + z).clamp(min=0) ** 2
    elif kind == "bce":
        gained, lost = F.softplus(-z), F.softplus(z)
    else:
        p, q = z.sigmoid(), (z.sigmoid() - clip).clamp(min=0)
        gained, lost = (1 - p) ** gamma_pos * F.softplus(-z), -(q**gamma_neg) * torch.log1p(-q)
    if pos_weight is not None:
        gained = gained * pos_weight.double()
    terms = t * gained + (1 - t) * lost
    return (terms if sample_weight is None else terms * sample_weight.double()[:, None]).sum()


@pytest.mark.parametrize("used", [(), ("pos_weight",), ("sample_weight",), ("pos_weight", "sample_weight")])
@pytest.mark.parametrize("kind", ["bce", "squared_hinge", "asymmetric"])
@every_head
def test_losses_with_weights(name, kind, used):
    head = HEADS[name]()
    x, positive, weights = problem(head)
    given = {key: weights[key] for key in used}
    logits = head(x)
    wanted = expected(logits, positive, kind, **given)
    found = head.loss(x, LISTS, loss=kind, reduction="sum", **given)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    parameters = [*head.parameters(), *([x] if x.requires_grad else [])]
    for a, b in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(wanted, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "focus", [{"gamma_pos": 1.0}, {"gamma_neg": 2.0, "clip": 0.0}, {"gamma_neg": 0.5, "clip": 0.3}]
)
@every_head
def test_the_asymmetric_loss_has_its_options(name, focus):
    head = HEADS[name]()
    x, positive, _ = problem(head)
    with torch.no_grad():
        wanted = expected(head(x), positive, "asymmetric", **focus)
        found = head.loss(x, LISTS, loss="asymmetric", reduction="sum", **focus)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


@every_head
def test_extreme_logits_stay_finite(name):
    head = HEADS[name]()
    x, _, _ = problem(head, scale=500.0)
    for kind, options in (("bce", {}), ("asymmetric", {}), ("asymmetric", {"clip": 0.0, "gamma_neg": 0.5})):
        loss = head.loss(x, LISTS, loss=kind, **options)
        gradients = torch.autograd.grad(loss, list(head.parameters()))
        assert loss.isfinite() and all(bool(g.isfinite().all()) for g in gradients)


@every_head
def test_means(name):
    """ "mean" divides by the rows, "mean_all" also by the labels: the mean of ``BCEWithLogitsLoss``."""
    head = HEADS[name]()
    x, positive, weights = problem(head)
    with torch.no_grad():
        total = head.loss(x, LISTS, reduction="sum")
        torch.testing.assert_close(head.loss(x, LISTS), total / B)
        wanted = F.binary_cross_entropy_with_logits(head(x), positive, pos_weight=weights["pos_weight"])
        found = head.loss(x, LISTS, reduction="mean_all", pos_weight=weights["pos_weight"])
        torch.testing.assert_close(found, wanted)
        for reduction in ("none", "batchmean"):
            with pytest.raises(ValueError, match=f"reduction must be .* got '{reduction}'"):
                head.loss(x, LISTS, reduction=reduction)


BAD = [
    ({"pos_weight": torch.ones(L - 1)}, ValueError, r"pos_weight must be \[12\]"),
    ({"sample_weight": torch.ones(B + 1)}, ValueError, r"sample_weight must be \[6\]"),
    ({"pos_weight": torch.ones(L, requires_grad=True)}, ValueError, "pos_weight must not require a gradient"),
    ({"sample_weight": torch.ones(B, requires_grad=True)}, ValueError, "sample_weight must not require a gradient"),
    ({"pos_weight": torch.ones(L, dtype=torch.int64)}, TypeError, "pos_weight must be float"),
    ({"sample_weight": [1.0] * B}, TypeError, "sample_weight must be a torch.Tensor"),
    ({"gamma_neg": 2.0}, ValueError, "gamma_neg goes with loss='asymmetric'"),
    ({"label_smoothing": 0.1}, ValueError, "label_smoothing goes with loss='cross_entropy'"),
    ({"positive_weight": torch.ones(L)}, TypeError, "no option 'positive_weight'"),
]


@pytest.mark.parametrize(("given", "error", "text"), BAD)
@every_head
def test_bad_options_are_named(name, given, error, text):
    head = HEADS[name]()
    x, _, _ = problem(head)
    with pytest.raises(error, match=text):
        head.loss(x, LISTS, **given)


@pytest.mark.skipif(INTERPRETING, reason="sizes of the CPU kernels")
@pytest.mark.parametrize("kind", ["bce", "squared_hinge", "asymmetric"])
@pytest.mark.parametrize("group_size", [1, 8])
def test_weights_of_many_rows_and_labels(group_size, kind):
    """Several blocks of rows, of which the last is not full, several tiles, and products that are emptied on the way."""
    rows, labels = 150, 3000
    generator = torch.Generator().manual_seed(0)
    head = FixedFanInLinear(D, labels, K, group_size=group_size, seed=1)
    x = (2 * torch.randn(rows, D, generator=generator)).requires_grad_()
    positive = (torch.rand(rows, labels, generator=generator) < 0.01).float()
    weights = {
        "pos_weight": 0.5 + torch.rand(labels, generator=generator),
        "sample_weight": torch.rand(rows, generator=generator),
    }
    found = head.loss(x, positive, loss=kind, **weights)
    wanted = expected(head(x), positive, kind, **weights) / rows
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    inputs = [x, *head.parameters()]
    for a, b in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["bce", "asymmetric"])
def test_a_fused_optimizer_takes_weights_too(kind):
    x, _, weights = problem(None)
    plain, head, stepped = (FixedFanInLinear(D, L, K, seed=1) for _ in range(3))
    for one in (head, stepped):
        one.fuse_optimizer(FusedSGD(0.1))
    unfused = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(2):
        unfused.zero_grad()
        plain.loss(x, LISTS, loss=kind, **weights).backward()
        unfused.step()
        head.loss(x, LISTS, loss=kind, **weights).backward()
        head._optimizer.step()
        stepped.step(x, LISTS, loss=kind, **weights)
    torch.testing.assert_close(head.weight, plain.weight)
    torch.testing.assert_close(stepped.weight, plain.weight)
