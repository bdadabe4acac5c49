"""State of fused optimizers: copies, loading, skipped updates; and uses in which an update would be lost or wrong."""

import copy
import functools
import pickle

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim.fused import FusedAdagrad, FusedAdam, FusedSGD
from tests.optim.test_fused import D, batches, make_head


def fused(optimizer, **options):
    head = make_head(**options)
    head.fuse_optimizer(optimizer)
    return head


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda head: pickle.loads(pickle.dumps(head))])
def test_a_copy_trains_like_the_original(clone):
    data = list(batches(3))
    head = fused(FusedAdam(0.1, 0.9))
    head.step(*data[0])
    twin = clone(head)
    for x, targets in data[1:]:
        for layer in (head, twin):
            layer.loss(x, targets).backward()
            layer._optimizer.step()
    assert twin._optimizer is not head._optimizer
    assert torch.equal(twin.weight, head.weight) and torch.equal(twin.bias, head.bias)


def test_state_of_other_sizes_or_kinds_is_refused():
    small, large = fused(FusedAdagrad(0.1)), fused(FusedAdagrad(0.1), out_features=900)
    with pytest.raises(ValueError, match=r"does not fit a parameter \[900, 6\]: it holds \{'second_moment': \[12\]\}"):
        large._optimizer.load_state_dict(small._optimizer.state_dict())
    with pytest.raises(ValueError, match=r"needed is \{'second_moment': \[12\]\}"):
        small._optimizer.load_state_dict(fused(FusedSGD(0.1))._optimizer.state_dict())
    with pytest.raises(ValueError, match="another kind of optimizer: it has no beta2"):
        fused(FusedAdam(0.1))._optimizer.load_state_dict(small._optimizer.state_dict())


def test_skipped_updates_do_not_count():
    """After ten batches that are skipped, Adam's first step is as long as after none."""
    steps = []
    (x, targets), *_ = batches(1)
    for skipped in (0, 10):
        head = fused(FusedAdam(0.1, rounding="nearest"))
        for _ in range(skipped):
            head.step(torch.full_like(x, float("inf")), targets)
        head.step(x, targets)
        steps.append(head.weight.detach().clone())
    assert torch.equal(*steps)


def test_taking_the_optimizer_away_and_back_keeps_its_state():
    (x, targets), *_ = batches(1)
    optimizer = FusedSGD(0.1, 0.9)
    head = fused(optimizer)
    head.step(x, targets)
    before = optimizer.state[head.weight]["momentum_buffer"].clone()
    head.fuse_optimizer(None)
    head.fuse_optimizer(optimizer)
    assert before.any() and torch.equal(optimizer.state[head.weight]["momentum_buffer"], before)
    head.double()
    head.fuse_optimizer(optimizer)
    assert optimizer.state[head.weight]["momentum_buffer"].dtype == torch.float64


def test_an_unknown_loss_scale_is_an_error():
    (x, targets), *_ = batches(1)
    encoder, scaler = torch.nn.Linear(D, D), torch.amp.GradScaler("cpu")
    for known in (scaler, None):
        optimizer = FusedSGD(0.1, grad_scaler=known)
        head = fused(optimizer)
        other = torch.optim.SGD(encoder.parameters(), 0.1)
        scaler.scale(head.loss(encoder(x), targets)).backward()
        scaler.step(other)
        if known is None:
            with pytest.raises(RuntimeError, match=r"give it to the optimizer, FusedSGD\(..., grad_scaler=scaler\)"):
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
            scaler.update()


def test_gradients_that_would_be_lost_are_an_error():
    (x, targets), *_ = batches(1)
    head = make_head()
    head(x).sum().backward()
    head.fuse_optimizer(FusedSGD(0.1))
    head.step(x, targets)
    head(x).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"a parameter \[12, 6\] has a gradient, which a fused optimizer does not apply"
    ):
        head._optimizer.step()
    head._optimizer.zero_grad()
    head.step(x, targets)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_frozen_parameters_are_not_updated(name):
    (x, targets), *_ = batches(1)
    head = fused(FusedSGD(0.1))
    getattr(head, name).requires_grad_(False)
    before = head.weight.detach().clone(), head.bias.detach().clone()
    with pytest.raises(RuntimeError, match=f"{name} is frozen"):
        head.step(x, targets)
    with pytest.raises(ValueError, match=f"{name}.requires_grad is False"):
        head.loss(x, targets)
    assert torch.equal(head.weight, before[0]) and torch.equal(head.bias, before[1])


def test_a_changed_bias_is_noticed():
    (x, targets), *_ = batches(1)
    head = fused(FusedSGD(0.1))
    loss = head.loss(x, targets)
    with torch.no_grad():
        head.bias.add_(1)
    with pytest.raises(RuntimeError, match="parameters changed between its loss and backward"):
        loss.backward()


def test_options_and_seeds_are_checked():
    (x, targets), *_ = batches(1)
    head = fused(FusedSGD(0.1))
    for call in (head.loss, head.step):
        with pytest.raises(ValueError, match="label_smoothing goes with loss='cross_entropy'"):
            call(x, targets, label_smoothing=0.1)
        with pytest.raises(TypeError, match="no option 'reductoin'"):
            call(x, targets, reductoin="sum")
    with pytest.raises(ValueError, match=rf"in_features={D}\], got shape \[3, 9\]"):
        head.step(torch.randn(3, 9), targets)
    with pytest.raises(TypeError, match="seed must be an int, got 1.5"):
        FusedSGD(0.1, seed=1.5)
    for seed in (-1, 2**64 - 1):
        layer = FixedFanInLinear(D, 12, 4, seed=0, dtype=torch.bfloat16)
        layer.fuse_optimizer(FusedSGD(0.1, seed=seed))
        layer.step(x, targets)


def test_the_input_gradient_has_the_dtype_of_the_input():
    (x, targets), *_ = batches(1)
    head = fused(FusedSGD(0.1))
    with torch.autocast("cpu", torch.bfloat16):
        _, dx = head.step(x, targets)
    assert dx.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [FusedSGD, FusedAdam, FusedAdagrad])
def test_state_follows_a_head_that_is_cast(kind, dtype):
    """As if the state had been loaded into the head of the other dtype; kernels go by the weight's."""
    make = functools.partial(kind, 0.1, 0.9)
    (first, targets), (second, others) = batches(2)
    head = fused(make())
    head.step(first, targets)
    fresh = fused(make())
    fresh.load_state_dict(head.state_dict())
    fresh.fuse_optimizer(None)
    fresh.to(dtype)
    optimizer = make()
    fresh.fuse_optimizer(optimizer)
    optimizer.load_state_dict(head._optimizer.state_dict())
    head.to(dtype)
    for layer in (head, fresh):
        layer.step(second.to(dtype), others)
    assert torch.equal(head.weight, fresh.weight) and torch.equal(head.bias, fresh.bias)
    kinds = head._optimizer._state_kinds(head.weight)
    assert all(held.dtype == kinds[name][1] for name, held in head._optimizer.state[head.weight].items())


WRONG_STATE = {
    "momentum_buffer": (torch.zeros(4, 3), ValueError, r"must be \[6, 3\] and contiguous, got \[4, 3\]"),
    "second_moment": (torch.zeros(6, dtype=torch.float64), TypeError, "must be torch.float32, got torch.float64"),
    "bias_momentum_buffer": (torch.zeros(12)[::2], ValueError, r"must be \[6\] and contiguous.*strides \(2,\)"),
    "bias_second_moment": (torch.zeros(6, device="meta"), ValueError, "must be on the weight's device cpu, got meta"),
}


@pytest.mark.parametrize("name", WRONG_STATE)
def test_state_of_a_foreign_rule_is_checked_before_it_is_written_to(name):
    """An ``UpdateRule`` may be anybody's: a kernel that trusts it writes to memory that is not there."""
    state, error, message = WRONG_STATE[name]

    class Rule:
        def attach(self, weight, bias):
            pass

        def next_update(self, weight, bias):
            return ops.Update(lr=0.1)._replace(**{name: state})

        def loss_scale(self, device):
            return None

        def end_step(self):
            pass

    head = FixedFanInLinear(8, 6, 3, seed=0)
    head.fuse_optimizer(Rule())
    before = head.weight.detach().clone()
    with pytest.raises(error, match=f"{name} of the update {message}"):
        head.step(torch.ones(2, 8), [[1], [2]])
    with pytest.raises(error, match=f"{name} of the update {message}"):
        head.loss(torch.ones(2, 8), [[1], [2]]).backward()
    assert torch.equal(head.weight, before)


def test_sorted_targets_of_other_dtypes_are_refused():
    head = fused(FusedSGD(0.1))
    (x, targets), *_ = batches(1)
    positives = ops.sort_targets(targets, head.out_features)
    for wrong in (
        positives._replace(labels=positives.labels.int()),
        positives._replace(rows=positives.rows.long()),
        positives._replace(rows=positives.rows[:-1]),
    ):
        with pytest.raises(TypeError, match="sorted targets hold int64 labels and as many int32 rows"):
            head.step(x, wrong)
