"""Labels that come to a trained layer and labels that go: the others stay as they were, optimizers go on."""

import pytest
import torch

from sparse_xmc.models import DenseLinear, FixedFanInLinear, HeadTailLinear, SparseInputLinear
from sparse_xmc.optim import FusedSGD
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="modules over the CPU kernels")
D, N = 12, 60


def layer(kind, labels, group_size=1):
    if kind is DenseLinear:
        return DenseLinear(D, labels, seed=0)
    if kind is HeadTailLinear:
        return HeadTailLinear(D, labels, 3, num_head=2, group_size=group_size, seed=0)
    return kind(D, labels, 3, group_size=group_size, seed=0)


def data(labels, sparse=False):
    """Rows in which feature ``j`` tells of label ``j``."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(N, labels, generator=generator) < 0.3).float()
    x = 0.1 * torch.rand(N, D, generator=generator)
    x[:, :labels] += y
    return (x.to_sparse_csr() if sparse else x), y.to_sparse_csr()


@pytest.mark.parametrize("kind", [FixedFanInLinear, SparseInputLinear, DenseLinear, HeadTailLinear])
@pytest.mark.parametrize("informed", [False, True])
def test_old_labels_stay_and_new_ones_learn(kind, informed):
    head = layer(kind, 5)
    x, y = data(4, sparse=kind is SparseInputLinear)
    with torch.no_grad():
        before = head(x)
    head.add_labels_(4, *((x, y) if informed else ()), seed=1)
    with torch.no_grad():
        after = head(x)
    assert after.shape == (N, 9) and head.out_features == 9 and torch.allclose(after[:, :5], before, atol=1e-6)
    if informed:
        expected = torch.log((y.to_dense().sum(0) + 1) / (N - y.to_dense().sum(0) + 1))
        torch.testing.assert_close(after[:, 5:], expected.expand(N, 4))
    whole = torch.cat([torch.zeros(N, 5), y.to_dense()], 1).to_sparse_csr()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(x, whole).backward()
        optimizer.step()
    with torch.no_grad():
        right = ((head(x)[:, 5:] > 0) == (y.to_dense() > 0)).float().mean()
    assert right > (0.95 if informed or kind is DenseLinear else 0.5)


@pytest.mark.parametrize(("before", "added"), [(6, 3), (6, 1), (8, 5), (7, 9)])
def test_new_labels_fill_up_the_last_group(before, added):
    head = layer(FixedFanInLinear, before, group_size=4)
    rows = head.indices.clone()
    x, y = data(added)
    head.add_labels_(added, x, y)
    assert head.indices.shape == (-(-(before + added) // 4), 3) and torch.equal(head.indices[: len(rows)], rows)
    assert head(x).shape == (N, before + added)
    fresh = layer(FixedFanInLinear, before + added, group_size=4)
    fresh.load_state_dict(head.state_dict())  # which checks that connections are distinct


def test_connections_start_where_the_rows_are():
    head = layer(FixedFanInLinear, 2)
    x, y = data(4)
    head.add_labels_(4, x, y)
    for label in range(4):
        assert label in head.label_indices(2 + label, 3 + label)[0].tolist()


@pytest.mark.parametrize(
    "make", [torch.optim.Adagrad, torch.optim.Adam, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)]
)
def test_an_optimizer_goes_on(make):
    head, other = layer(FixedFanInLinear, 5), layer(FixedFanInLinear, 5)
    x, y = data(5)
    optimizers = [make(one.parameters(), lr=0.1) for one in (head, other)]

    def step(one, optimizer, targets):
        optimizer.zero_grad()
        one.loss(x, targets, reduction="sum").backward()
        optimizer.step()

    for one, optimizer in zip((head, other), optimizers, strict=True):
        step(one, optimizer, y)
    head.add_labels_(2, optimizer=optimizers[0], seed=3)
    step(head, optimizers[0], torch.cat([y.to_dense(), torch.ones(N, 2)], 1).to_sparse_csr())
    step(other, optimizers[1], y)
    torch.testing.assert_close(head.weight[:5], other.weight)
    head.remove_labels_([5, 6], optimizer=optimizers[0])
    for one, optimizer in zip((head, other), optimizers, strict=True):
        step(one, optimizer, y)
    torch.testing.assert_close(head.weight, other.weight)
    torch.testing.assert_close(head.bias, other.bias)


@pytest.mark.parametrize("kind", [FixedFanInLinear, SparseInputLinear, DenseLinear])
def test_labels_that_go_leave_the_others(kind):
    head = layer(kind, 7)
    x, _ = data(7, sparse=kind is SparseInputLinear)
    with torch.no_grad():
        before = head(x)
        head.remove_labels_(torch.tensor([0, 3, 3]))
        torch.testing.assert_close(head(x), before[:, [1, 2, 4, 5, 6]])
    assert head.out_features == 5


def test_groups_go_whole():
    head = layer(FixedFanInLinear, 10, group_size=4)
    x, _ = data(10)
    with torch.no_grad():
        before = head(x)
    with pytest.raises(ValueError, match="whole groups of 4, .* group 1 would keep 3"):
        head.remove_labels_([4])
    with torch.no_grad():
        head.remove_labels_([0, 1, 2, 3])
        assert torch.equal(head(x), before[:, 4:])
        head.remove_labels_([4, 5])  # the short group at the end
        assert torch.equal(head(x), before[:, 4:8])


def test_what_cannot_be_is_refused():
    head = layer(FixedFanInLinear, 5)
    x, y = data(4)
    for arguments, message in (
        ((0,), "num_labels must be an integer of at least 1, got 0"),
        ((4, x), "x and targets come together"),
        ((3, x, y), r"targets must be \[60, 3\], got \[60, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            head.add_labels_(*arguments)
    with pytest.raises(TypeError, match="targets must be a torch.sparse_csr or sparse_coo tensor .*, got int"):
        head.add_labels_(4, x, 7)
    for labels, message in (([5], r"integers in \[0, 5\), got \[5\]"), ([-1], "got"), (range(5), "all 5 would go")):
        with pytest.raises(ValueError, match=message):
            head.remove_labels_(list(labels))
    from sparse_xmc.optim import FusedSGD

    head.fuse_optimizer(FusedSGD(0.1))
    with pytest.raises(ValueError, match="a fused optimizer holds state of each label"):
        head.add_labels_(1)


@pytest.mark.parametrize("split", [None, 4])
def test_a_head_in_two_parts_gains_and_loses_labels_in_both(split):
    head = HeadTailLinear(D, 7, 3, num_head=3, split=split, seed=0)
    x, y = data(4)
    with torch.no_grad():
        before = head(x)
    optimizer = torch.optim.Adam(head.parameters())
    head.loss(x, torch.zeros(N, 7).to_sparse_csr()).backward()
    optimizer.step()
    with torch.no_grad():
        before = head(x)
    head.add_labels_(4, x, y, optimizer=optimizer)
    head.remove_labels_([0, 4, 10], optimizer=optimizer)
    assert (head.num_head, head.head.out_features, head.tail.out_features, head.out_features) == (2, 2, 6, 8)
    with torch.no_grad():
        torch.testing.assert_close(head(x)[:, :5], before[:, [1, 2, 3, 5, 6]])
    scores, labels = head.topk(x, 8)
    assert sorted(labels[0].tolist()) == list(range(8)) and torch.equal(scores[0], head(x)[0, labels[0]])
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in head.parameters()}
    for part, labels in (("head", [0, 1]), ("tail", range(2, 8))):
        with pytest.raises(ValueError, match=f"the {part} of a HeadTailLinear keeps at least one label"):
            head.remove_labels_(list(labels))
    assert head.out_features == 8


def test_a_head_in_two_parts_stays_whole_where_labels_cannot_go():
    head = HeadTailLinear(D, 10, 3, num_head=2, group_size=4, seed=0)
    with pytest.raises(ValueError, match="by whole groups of 4"):
        head.remove_labels_([0, 3])
    assert head.head.out_features == 2 and head.num_head == 2
    head.tail.fuse_optimizer(FusedSGD(0.1))
    with pytest.raises(ValueError, match="a fused optimizer holds state"):
        head.remove_labels_([0])
