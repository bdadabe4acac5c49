"""FixedFanInLinear.rewire_: what happens to the state of every kind of optimizer."""

import pytest
import torch
from torch import nn

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.ops import RegrowBatch
from sparse_xmc.ops._arguments import validate_indices
from sparse_xmc.optim.fused import FusedSGD

OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adam-foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
}
ZERO = {"exp_avg", "momentum_buffer", "prev"}
MEAN = {"exp_avg_sq", "max_exp_avg_sq", "sum", "square_avg", "step_size"}


def trained(make, steps=5, G=1):
    layer = FixedFanInLinear(20, 11, 6, group_size=G, seed=0)
    optimizer = make(layer.parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        update(layer, optimizer, generator)
    return layer, optimizer, generator


def update(layer, optimizer, generator):
    optimizer.zero_grad()
    layer(torch.randn(8, 20, generator=generator)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("G", [1, 4])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_state_follows_the_connections(make, G):
    layer, optimizer, _ = trained(make, G=G)
    before = {k: v.clone() for k, v in optimizer.state[layer.weight].items() if isinstance(v, torch.Tensor)}
    indices, weight = layer.indices.clone(), layer.weight.detach().clone()
    count = layer.rewire_(fraction=0.4, optimizer=optimizer, seed=1)
    changed = (layer.indices.long() != indices.long()).repeat_interleave(G, 0)[:11]
    assert int(count) == 2 * len(indices) and int(changed.sum()) == 2 * 11
    assert torch.equal(layer.weight[~changed], weight[~changed])
    assert not layer.weight.grad[changed].any() and layer.weight.grad[~changed].any()
    for name, value in optimizer.state[layer.weight].items():
        if not isinstance(value, torch.Tensor) or value.shape != layer.weight.shape:
            continue
        assert name in ZERO | MEAN
        assert torch.equal(value[~changed], before[name][~changed])
        if name in ZERO:
            assert not value[changed].any()
        else:
            torch.testing.assert_close(value[changed], before[name].mean(1, keepdim=True).expand(11, 6)[changed])


def test_first_adam_step_of_a_new_connection_is_no_larger_than_others():
    """With v reset to zero it would be 3.2 learning rates."""
    layer, optimizer, generator = trained(OPTIMIZERS["adam"], steps=300)
    indices = layer.indices.clone()
    layer.rewire_(fraction=0.4, optimizer=optimizer, seed=1)
    changed = layer.indices.long() != indices.long()
    before = layer.weight.detach().clone()
    largest = 0.0
    for _ in range(10):
        update(layer, optimizer, generator)
        step = (layer.weight.detach() - before).abs()[changed].max().item()
        largest, before = max(largest, step), layer.weight.detach().clone()
    assert 0 < largest < 1.0 * 0.01


def test_fused_optimizer_is_found_without_being_named():
    layer = FixedFanInLinear(20, 11, 6, seed=0)
    optimizer = FusedSGD(0.1, momentum=0.9)
    layer.fuse_optimizer(optimizer)
    targets = torch.eye(11)[:8].to_sparse_csr()
    layer.loss(torch.randn(8, 20), targets).backward()
    optimizer.step()
    momentum = optimizer.state[layer.weight]["momentum_buffer"]
    before, indices = momentum.clone(), layer.indices.clone()
    layer.rewire_(fraction=0.4, seed=1)
    changed = layer.indices.long() != indices.long()
    assert before[changed].any() and not momentum[changed].any()
    assert torch.equal(momentum[~changed], before[~changed])


@pytest.mark.parametrize("regrow", ["gradient", "informed"])
def test_regrowth_from_a_batch(regrow):
    layer, optimizer, _ = trained(OPTIMIZERS["adam"])
    targets = (torch.rand(16, 11) < 0.3).float().to_sparse_csr()
    batch = RegrowBatch(torch.randn(16, 20), targets=targets)
    assert int(layer.rewire_(fraction=0.4, regrow=regrow, batch=batch, optimizer=optimizer, seed=1)) == 22
    validate_indices(layer.indices, 20)


def test_several_optimizers_and_errors():
    layer, optimizer, _ = trained(OPTIMIZERS["sgd-momentum"])
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    layer.rewire_(fraction=0.4, optimizer=[other, optimizer], seed=1)
    assert (optimizer.state[layer.weight]["momentum_buffer"] == 0).sum() == 22
    with pytest.raises(ValueError, match="optimizer does not hold this layer's weight"):
        layer.rewire_(fraction=0.4, optimizer=other)
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer or several, got str"):
        layer.rewire_(fraction=0.4, optimizer=["adam"])


def test_seed_none_follows_the_global_generator():
    layers = [FixedFanInLinear(20, 11, 6, seed=0) for _ in range(2)]
    for layer in layers:
        torch.manual_seed(4)
        layer.rewire_(fraction=0.5)
    assert torch.equal(layers[0].indices, layers[1].indices)
