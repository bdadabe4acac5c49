"""A step in a CUDA graph gives what eager steps give; on a CPU, where the call is repeated, its state logic."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sparse_xmc import FixedFanInLinear, ops
from sparse_xmc.optim import FusedAdam, FusedSGD
from tests.conftest import INTERPRETING

if INTERPRETING:
    pytest.skip("an interpreted kernel is not recorded", allow_module_level=True)

B, D, L, K = 6, 24, 300, 8
REPLAYS, NOT_FINITE = 100, 40
OPTIMIZERS = {
    "SGD": lambda: FusedSGD(1e-2, momentum=0.9, capturable=True),
    "Adam": lambda: FusedAdam(1e-3, momentum=0.5, capturable=True),
}


def recorded(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """What repeats ``call`` and returns its results after three warm-up calls: a replay of its kernels on a GPU."""
    for _ in range(3):
        call()  # compiles, and searches configurations
    if device.type == "cpu":
        return call
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def repeat() -> Any:
        graph.replay()
        return results

    return repeat


def fused_head(device: torch.device, group_size: int, dtype: torch.dtype, kind: str) -> tuple[FixedFanInLinear, Any]:
    """A head and its optimizer, whose numbers live on the device."""
    head = FixedFanInLinear(D, L, fan_in=K, group_size=group_size, seed=0, device=device, dtype=dtype)
    optimizer = OPTIMIZERS[kind]()
    head.fuse_optimizer(optimizer)
    return head, optimizer


def numbers(number: int) -> tuple[float, torch.Tensor, list[list[int]]]:
    """Rate, rows and labels of a step; one of them has rows that are not finite, which update nothing."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(B, D, generator=generator)
    if number == NOT_FINITE:
        x[2, 3] = float("inf")
    labels = torch.randint(L, (B, 3), generator=generator).tolist()
    return 1e-2 / (1 + number), x, labels


@pytest.mark.parametrize("fused_in", ["step", "backward"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("group_size", [1, 32])
def test_replays_give_what_eager_steps_give(device, group_size, kind, fused_in) -> None:
    """Bit for bit in bfloat16, the noise of rounding included; only the gradient of x is summed in another order."""
    pairs = [fused_head(device, group_size, torch.bfloat16, kind) for _ in range(2)]
    (eager, _), (head, _) = pairs
    x = torch.zeros(B, D, device=device, dtype=torch.bfloat16, requires_grad=fused_in == "backward")
    positives = ops.sort_targets([[0, 1, 2]] * B, L).to(device)

    def stepper(which: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        layer, optimizer = pairs[which]

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            if fused_in == "step":
                return layer.step(x, positives)
            loss = layer.loss(x, positives)
            (dx,) = torch.autograd.grad(loss, [x])
            optimizer.step()
            return loss.detach(), dx

        return step

    plain = stepper(0)
    for _ in range(3):
        plain()
    repeat = recorded(stepper(1), device)
    for number in range(REPLAYS):
        rate, rows, labels = numbers(number)
        with torch.no_grad():
            x.copy_(rows)
        for into, new in zip(positives[:2], ops.sort_targets(labels, L)[:2], strict=True):
            into.copy_(new)
        for _, optimizer in pairs:
            optimizer.param_groups[0]["lr"].fill_(rate)
        before = head.weight.detach().clone()
        (expected, expected_dx), (loss, dx) = plain(), repeat()
        assert torch.equal(head.weight, eager.weight) and torch.equal(head.bias, eager.bias), number
        assert torch.equal(head.weight, before) == (number == NOT_FINITE), number
        if number != NOT_FINITE:
            assert torch.equal(loss, expected), number
            torch.testing.assert_close(dx, expected_dx, rtol=2e-2, atol=1e-3)
    states = [optimizer.state[layer.weight] for layer, optimizer in pairs]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("group_size", [1, 32])
def test_gradients_of_a_recorded_loss(device, group_size) -> None:
    """Without a fused optimizer: loss and all gradients, at parameters that change in between."""
    head = FixedFanInLinear(D, L, fan_in=K, group_size=group_size, seed=0, device=device)
    x = torch.zeros(B, D, device=device, requires_grad=True)
    positives = ops.sort_targets([[0, 1, 2]] * B, L).to(device)
    leaves = [x, head.weight, head.bias]

    def compute() -> list[torch.Tensor]:
        loss = head.loss(x, positives)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    repeat = recorded(compute, device)
    for number in range(5):
        _, rows, labels = numbers(number)
        with torch.no_grad():
            x.copy_(rows)
            head.weight.add_(0.1)
        for into, new in zip(positives[:2], ops.sort_targets(labels, L)[:2], strict=True):
            into.copy_(new)
        torch.testing.assert_close(repeat(), compute())


def test_an_encoder_that_torch_records(device) -> None:
    """``make_graphed_callables`` in front of a recorded head, which gives it its gradient."""
    torch.manual_seed(0)
    encoder, (head, _) = torch.nn.Linear(10, D, device=device), fused_head(device, 1, torch.float32, "SGD")
    batch = torch.randn(B, 10, device=device)
    reference = torch.nn.Linear(10, D, device=device)
    reference.load_state_dict(encoder.state_dict())
    positives = ops.sort_targets([[0, 1, 2]] * B, L).to(device)
    if device.type == "cuda":
        encoder = torch.cuda.make_graphed_callables(encoder, (batch.clone(),))
    features = encoder(batch)
    _, dx = head.step(features.detach(), positives)
    features.backward(dx)
    reference(batch).backward(dx)
    torch.testing.assert_close(encoder.weight.grad, reference.weight.grad)
