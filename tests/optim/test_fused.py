"""Fused optimizers: the update in the kernel equals the unfused one, rounds without bias, never runs twice."""

import copy

import pytest
import torch

from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.ops._backend import kernels
from sparse_xmc.ops._contract import Layer, Objective, Positives, Scaling
from sparse_xmc.ops.update import Update
from sparse_xmc.optim.fused import FusedAdagrad, FusedAdam, FusedSGD
from tests import oracle
from tests.conftest import INTERPRETING

B, L, D, K = 5, 12, 16, 6


def make_head(dtype=torch.float32, group_size=1, device="cpu", out_features=L):
    return FixedFanInLinear(D, out_features, K, group_size=group_size, seed=3, dtype=dtype, device=device)


def batches(count, dtype=torch.float32, device="cpu"):
    g = torch.Generator().manual_seed(0)
    for _ in range(count):
        targets = oracle.make_targets((torch.rand(B, L, generator=g) < 0.2).int())
        yield torch.randn(B, D, generator=g, dtype=torch.float64).to(dtype).to(device), targets.to(device)


@pytest.mark.parametrize("kind", ["bce", "squared_hinge"])
@pytest.mark.parametrize("group_size", [1, 4])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.0, 0.05), (0.9, 0.05)])
def test_fused_sgd_is_torch_sgd(momentum, decay, group_size, kind, device):
    """Both ways in, a scheduler included, against gradients of the unfused loss and ``torch.optim.SGD``."""
    head = make_head(group_size=group_size, device=device)
    plain = copy.deepcopy(head)
    fused = FusedSGD(0.1, momentum, decay)
    head.fuse_optimizer(fused)
    unfused = torch.optim.SGD(
        [{"params": [plain.weight], "weight_decay": decay}, {"params": [plain.bias]}], lr=0.1, momentum=momentum
    )
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (fused, unfused)]
    for number, (x, targets) in enumerate(batches(4, device=device)):
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        expected = plain.loss(inputs[0], targets, loss=kind)
        unfused.zero_grad()
        expected.backward()
        unfused.step()
        if number % 2:
            got = head.loss(inputs[1], targets, loss=kind)
            got.backward()
            fused.step()
            dx = inputs[1].grad
        else:
            got, dx = head.step(inputs[1], targets, loss=kind)
        assert head.weight.grad is None
        torch.testing.assert_close(got.detach(), expected.detach())
        torch.testing.assert_close(dx, inputs[0].grad)
        for schedule in schedules:
            schedule.step()
    torch.testing.assert_close(head.weight, plain.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.bias, plain.bias, rtol=1e-5, atol=1e-6)
    assert ("momentum_buffer" in fused.state[head.weight]) == (momentum > 0)


@pytest.mark.skipif(INTERPRETING, reason="about where the CPU kernels apply a gradient")
def test_sgd_is_the_same_however_many_chunks_a_batch_takes():
    """Up to 64 rows a gradient is applied as it arises, beyond that tile by tile; no rows: the decay alone."""
    x = torch.randn(70, D, generator=torch.Generator().manual_seed(0))
    x[64:] = 0
    dense = torch.zeros(70, L, dtype=torch.int)
    dense[:64] = torch.rand(64, L, generator=torch.Generator().manual_seed(1)) < 0.2
    weights = []
    for rows in (64, 70, 0):
        head = make_head()
        before = head.weight.detach().clone()
        head.fuse_optimizer(FusedSGD(0.1, weight_decay=0.05))
        head.step(x[:rows], oracle.make_targets(dense[:rows]), reduction="sum")
        weights.append(head.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(weights[2], before * (1 - 0.1 * 0.05), rtol=1e-6, atol=0)
    assert not torch.allclose(weights[0], weights[2])


@pytest.mark.parametrize("adam", [False, True])
def test_row_wise_adaptive_methods(adam, device):
    """Against their formulas in float64; state is one number per label."""
    head = make_head(device=device)
    w, b = head.weight.detach().cpu().double(), head.bias.detach().cpu().double()
    v, bv = torch.zeros(L, dtype=torch.float64), torch.zeros(L, dtype=torch.float64)
    optimizer = FusedAdam(0.1, weight_decay=0.02, beta2=0.9) if adam else FusedAdagrad(0.1, weight_decay=0.02)
    head.fuse_optimizer(optimizer)
    for step, (x, targets) in enumerate(batches(3, device=device), 1):
        problem = oracle.Problem(x.cpu(), w, head.indices.cpu(), b, 1)
        gradients = oracle.loss(problem, targets.cpu().to_dense(), "bce")
        g, gb = gradients.dw / B, gradients.db / B
        decay, gain, correction = (0.9, 0.1, 1 / (1 - 0.9**step)) if adam else (1, 1, 1)
        v, bv = decay * v + gain * g.pow(2).mean(1), decay * bv + gain * gb.pow(2)
        w = w - 0.1 * (g / ((correction * v).sqrt() + 1e-8)[:, None] + 0.02 * w)
        b = b - 0.1 * gb / ((correction * bv).sqrt() + 1e-8)
        head.loss(x, targets).backward()
        optimizer.step()
    torch.testing.assert_close(head.weight.detach().cpu().double(), w, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.bias.detach().cpu().double(), b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizer.state[head.weight]["second_moment"].cpu().double(), v, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loss_scale_is_removed_from_the_update_only(dtype, device):
    """A scale of 1024 multiplies dx; weights move as without it. An infinite one moves nothing."""
    (x, targets), *_ = batches(1, dtype, device)
    results = []
    for scaler in (None, FixedScale(1024.0), FixedScale(float("inf"))):
        head = make_head(dtype, device=device)
        optimizer = FusedSGD(0.5, 0.9, rounding="nearest", grad_scaler=scaler)
        head.fuse_optimizer(optimizer)
        before = head.weight.detach().clone()
        leaf = x.clone().requires_grad_()
        loss = head.loss(leaf, targets)
        (loss if scaler is None else scaler.scale(loss)).backward()
        results.append((head.weight.detach() - before, leaf.grad.float()))
    assert results[0][0].abs().max() > 0
    torch.testing.assert_close(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1] / 1024, results[0][1], rtol=1e-2, atol=1e-5)
    assert results[2][0].abs().max() == 0


class FixedScale:
    """The part of ``torch.amp.GradScaler`` that a fused optimizer uses."""

    def __init__(self, factor):
        self.factor = factor

    def scale(self, loss):
        return loss * self.factor


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_inputs_that_are_not_finite_update_nothing(bad, device):
    head = make_head(device=device)
    optimizer = FusedSGD(0.1, 0.9)
    head.fuse_optimizer(optimizer)
    (x, targets), *_ = batches(1, device=device)
    x[0, 0] = bad
    before = head.weight.detach().clone(), head.bias.detach().clone()
    head.step(x, targets)
    head.loss(x, targets).backward()
    assert torch.equal(head.weight, before[0]) and torch.equal(head.bias, before[1])
    assert not optimizer.state[head.weight]["momentum_buffer"].any()


def test_updating_twice_is_an_error():
    head = make_head()
    optimizer = FusedSGD(0.1)
    head.fuse_optimizer(optimizer)
    (x, targets), *_ = batches(1)
    loss = head.loss(x, targets)
    loss.backward(retain_graph=True)
    after = head.weight.detach().clone()
    with pytest.raises(RuntimeError, match="it would update twice"):
        loss.backward()
    with pytest.raises(RuntimeError, match="cannot accumulate"):
        head.loss(x, targets).backward()
    optimizer.step()
    first, second = head.loss(x, targets), head.loss(x, targets)
    first.backward()
    optimizer.step()
    moved = head.weight.detach().clone()
    with pytest.raises(RuntimeError, match="parameters changed"):
        second.backward()
    assert not torch.equal(after, moved) and torch.equal(head.weight, moved)


def test_misuse_is_named():
    head = make_head()
    (x, targets), *_ = batches(1)
    with pytest.raises(RuntimeError, match="fuse_optimizer"):
        head.step(x, targets)
    optimizer = FusedSGD(0.1)
    head.fuse_optimizer(optimizer)
    with pytest.raises(RuntimeError, match="one head"):
        make_head().fuse_optimizer(optimizer)
    with pytest.raises(ValueError, match="lr must not be negative, got -1"):
        FusedSGD(-1)
    with pytest.raises(ValueError, match="rounding must be"):
        FusedAdagrad(0.1, rounding="up")
    with pytest.raises(ValueError, match=r"beta2 must lie in \[0, 1\), got 1"):
        FusedAdam(0.1, beta2=1.0)
    with torch.no_grad():
        assert not head.loss(x, targets).requires_grad
    head.fuse_optimizer(None)
    head.loss(x, targets).backward()
    assert head.weight.grad is not None


@pytest.mark.parametrize("make", [lambda: FusedSGD(0.1, 0.9), lambda: FusedAdagrad(0.1, momentum=0.5)])
def test_resume_is_bit_exact(make):
    """State keeps its dtype (float32 moments beside bfloat16 weights), and so does the noise of the rounding."""
    data = list(batches(4, torch.bfloat16))
    runs = []
    for resume in (False, True):
        head, optimizer = make_head(torch.bfloat16), make()
        head.fuse_optimizer(optimizer)
        for number, (x, targets) in enumerate(data):
            if resume and number == 2:
                saved = copy.deepcopy((head.state_dict(), optimizer.state_dict()))
                head, optimizer = make_head(torch.bfloat16), make()
                head.fuse_optimizer(optimizer)
                head.load_state_dict(saved[0])
                optimizer.load_state_dict(saved[1])
            head.step(x, targets)
        runs.append(head.weight.detach())
    assert torch.equal(*runs)


def updated(x, layer, positives, scaling, update):
    kernels("loss", x).loss_step_(x, layer, positives, Objective(), scaling, update, need_loss=False, need_x=False)


def rounded(value, dtype, device, steps, lanes=64):
    """``value`` as float32 arithmetic leaves it, stored in ``dtype`` with fresh noise: ``[steps, lanes]`` float64.

    The bias starts at zero, its gradient is ``0.5`` (logit zero) times a scale of 2: ``lr = -value`` asks for ``value``.
    """
    x, indices = torch.zeros(1, 1, device=device), torch.zeros(lanes, 1, dtype=torch.uint16, device=device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    positives = Positives(none, none.int(), 1, lanes)
    out = []
    for step in range(steps):
        weight, bias = torch.zeros(lanes, 1, device=device), torch.zeros(lanes, dtype=dtype, device=device)
        update = Update(lr=-value, stochastic=True, seed=11, step=step)
        updated(x, Layer(weight, indices, bias, 1), positives, Scaling(0.5), update)
        out.append(bias.cpu().double())
    return torch.stack(out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [1.0009765625 / 3, -0.0123, 2.0**-14 * 0.61, -(2.0**-23) * 0.7, 2.0**-24 * 0.3])
def test_stochastic_rounding_is_unbiased(value, dtype, device):
    """The mean over many seeds lies within 5 standard errors, in float16 subnormals too, and only neighbours occur."""
    value = float(torch.tensor(value, dtype=torch.float32))
    draws = rounded(value, dtype, device, steps=4 if INTERPRETING else 200)
    found = draws.unique()
    gap = (found.max() - found.min()).item()
    below = found[found.abs().argmin()].item()
    exact = float(torch.tensor(value).to(dtype))
    assert len(found) <= 2 and found.abs().min() <= abs(value) <= found.abs().max()
    assert exact in found.tolist()
    share = abs(value - below) / gap if gap else 0.0
    error = gap * (share * (1 - share) / draws.numel()) ** 0.5
    assert gap > 0 and abs(draws.mean().item() - value) <= 5 * error, (
        f"bias {draws.mean().item() - value}, 5 sigma {5 * error}"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_saturates_and_keeps_what_is_exact(dtype, device):
    largest = torch.finfo(dtype).max
    assert rounded(largest * (1 + 2.0**-12), dtype, device, 1).eq(largest).all()
    assert rounded(-largest, dtype, device, 1).eq(-largest).all()
    assert rounded(0.375, dtype, device, 1).eq(0.375).all()


def test_connections_get_independent_noise():
    """All slots of a label ask for the same value; no two slots and no two steps round alike."""
    if INTERPRETING:
        pytest.skip("about the layout of the counter, which the unbiasedness test covers")
    K, lanes = 19, 200
    x, indices = torch.ones(1, K), torch.arange(K, dtype=torch.int32).to(torch.uint16).repeat(lanes, 1)
    positives = Positives(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), 1, lanes)
    ups = []
    for step in (1, 2):
        weight, bias = torch.zeros(lanes, K, dtype=torch.bfloat16), torch.zeros(lanes)
        update = Update(lr=-2 * (1 + 2.0**-8), stochastic=True, seed=5, step=step)
        updated(x, Layer(weight, indices, bias, 1), positives, Scaling(), update)
        ups.append((weight.double() > 1).double())
    up = torch.cat(ups, dim=1)
    correlation = torch.corrcoef(up.t())
    off = correlation[~torch.eye(2 * K, dtype=torch.bool)]
    assert off.abs().max() < 0.4 and abs(up.mean().item() - 0.5) < 0.03
