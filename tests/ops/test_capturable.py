"""Updates whose learning rate and count are tensors, which a captured graph reads anew in every replay."""

import pytest
import torch

from sparse_xmc import ops
from sparse_xmc.ops import step as step_module
from sparse_xmc.ops._backend import kernels
from sparse_xmc.ops._contract import Layer, Objective, Scaling
from tests.conftest import INTERPRETING
from tests.ops.test_loss import BF16, problem_and_targets


def updated(problem, targets, update):
    x, weight, indices, bias, G = problem
    layer = Layer(weight.clone(), indices, bias.clone(), G)
    positives = ops.sort_targets(targets, weight.shape[0])
    arguments = (x, layer, positives, Objective(), Scaling(len(x)), update)
    kernels("loss", x).loss_step_(*arguments, need_loss=False, need_x=False)
    return layer.weight, layer.bias


def test_tensors_give_what_numbers_give(device):
    """Bit for bit, the noise of rounding included; and changed in place they change the result."""
    problem, _, targets = problem_and_targets((20, 21, 30, 8, 4), BF16, device)
    lr = torch.tensor(0.1, dtype=torch.float64, device=device)
    step = torch.tensor(5, dtype=torch.int64, device=device)
    captured = ops.Update(lr=lr, step=step, seed=3)
    results = []
    for rate, number in ((0.1, 5), (0.1, 6), (0.3, 6)):
        lr.fill_(rate)
        step.fill_(number)
        found = updated(problem, targets, captured)
        expected = updated(problem, targets, ops.Update(lr=rate, step=number, seed=3))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        results.append(found[0])
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[1], results[2])


def test_the_count_of_updates_is_kept_on_the_device(device):
    """One more for each update that is applied, none for one that is skipped; it makes the correction."""
    problem, _, targets = problem_and_targets((20, 21, 30, 8, 4), torch.float32, device)
    applied = torch.zeros((), dtype=torch.float64, device=device)
    moment = torch.zeros(21, device=device)
    update = ops.Update(second_moment=moment, lr=0.1, decay=0.9, gain=0.1, eps=1e-8, applied=applied)
    first = updated(problem, targets, update)[0]
    assert applied.item() == 1
    moment.zero_()
    corrected = update._replace(applied=None, correction=torch.tensor(1 / (1 - 0.9), device=device))
    torch.testing.assert_close(updated(problem, targets, corrected)[0], first)
    bad = problem._replace(x=torch.full_like(problem.x, float("inf")))
    assert torch.equal(updated(bad, targets, update)[0], problem.weight)
    assert applied.item() == 1


def test_numbers_are_refused_in_a_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="lr and step of the fused update must be tensors on cuda:0"):
        step_module._check_capture(ops.Update(lr=0.1), torch.device("cuda:0"))
    tensors = ops.Update(lr=torch.tensor(0.1), step=torch.tensor(1))
    step_module._check_capture(tensors, torch.device("cuda:0"))
    step_module._check_capture(ops.Update(lr=0.1), torch.device("cpu"))


@pytest.mark.skipif(not INTERPRETING, reason="about the launchers of the Triton kernels")
def test_a_captured_step_zeroes_its_own_flag(device, monkeypatch):
    """The flag that a stream keeps is zero when a sweep begins; in a replay only what the graph itself does counts."""
    from sparse_xmc.ops.triton_kernels import head_sweep

    problem, _, targets = problem_and_targets((20, 21, 30, 8, 4), torch.float32, device)
    update = ops.Update(lr=0.1, step=1)
    expected = updated(problem, targets, update)
    made = []
    zeros = torch.zeros
    monkeypatch.setattr(head_sweep, "capturing", lambda tensor: True)
    monkeypatch.setattr(
        head_sweep, "_flag_of", lambda *which: pytest.fail("the stream's flag would be read in replays")
    )
    monkeypatch.setattr(torch, "zeros", lambda *a, **k: made.append(k["dtype"]) or zeros(*a, **k))
    found = updated(problem, targets, update)
    assert torch.int32 in made and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
