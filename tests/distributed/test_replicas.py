"""Plain DistributedDataParallel with its defaults: every rank reads rank 0's connections."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparse_xmc.models import FixedFanInLinear, HeadTailLinear, QuantizedFixedFanInLinear, SparseInputLinear
from sparse_xmc.models.checked_indices import CheckedIndices, fingerprint
from sparse_xmc.ops import RegrowBatch
from sparse_xmc.optim import FusedSGD

KINDS = ["fixed", "grouped", "int32", "head_tail", "frozen", "quantized"]


def make(kind: str) -> nn.Module:
    """A model with a head of its own on every rank."""
    torch.manual_seed(100 + dist.get_rank())
    if kind == "int32":
        return nn.Sequential(nn.Linear(8, 70_000), FixedFanInLinear(70_000, 40, 4))
    heads = {
        "fixed": lambda: FixedFanInLinear(16, 40, 4),
        "grouped": lambda: FixedFanInLinear(16, 40, 4, False, group_size=8),
        "head_tail": lambda: HeadTailLinear(16, 40, 4, num_head=5),
        "frozen": lambda: FixedFanInLinear(16, 40, 4).requires_grad_(False),
        "quantized": lambda: QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(16, 40, 4)),
    }
    return nn.Sequential(nn.Linear(8, 16), heads[kind]())


def topologies(model: nn.Module) -> list[int]:
    return [fingerprint(layer.indices) for layer in model.modules() if isinstance(layer, CheckedIndices)]


def train(kind: str) -> dict[str, Any]:
    own = make(kind)
    seen: dict[str, Any] = {"before": topologies(own)}
    model = DistributedDataParallel(own)
    seen["after"] = topologies(model)
    x = torch.linspace(-1, 1, 24).view(3, 8)
    if kind != "quantized":
        seen["y"] = model(x).detach()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        if kind == "quantized":
            break
        model(x + dist.get_rank() + step).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    heads = [layer for layer in own.modules() if isinstance(layer, FixedFanInLinear)]
    torch.rand(dist.get_rank() + 1)  # the ranks' generators stand at different places
    for layer in heads:
        layer.rewire_(fraction=0.5)
    seen["rewired"] = topologies(model)
    for layer in heads:
        batch = RegrowBatch(torch.randn(6, layer.in_features), dy=torch.randn(6, layer.out_features))
        layer.rewire_(fraction=0.5, regrow="gradient", batch=batch)
    seen["regrown"] = topologies(model)
    if kind != "quantized":
        seen["y again"] = model(x).detach()
    seen["weights"] = [parameter.detach().clone() for parameter in own.parameters()]
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_agree(pools, kind):
    first, second = pools(2).run(train, kind)
    if kind != "quantized":
        assert first["before"] != second["before"]
        assert torch.equal(first["y"], second["y"]) and torch.equal(first["y again"], second["y again"])
        assert first["regrown"] != first["rewired"] != first["after"]
    assert first["before"] == first["after"] == second["after"]
    assert first["rewired"] == second["rewired"] and first["regrown"] == second["regrown"]
    assert all(torch.equal(a, b) for a, b in zip(first["weights"], second["weights"], strict=True))


def load_before_and_after() -> list[Any]:
    """Rank 0 alone loads a checkpoint before the model is wrapped; all ranks load one afterwards."""
    source, model = make("fixed"), make("fixed")
    torch.manual_seed(7)
    given, later = (copy.deepcopy(source.state_dict()) for _ in range(2))
    for state in (given, later):
        state["1.indices"].copy_(FixedFanInLinear(16, 40, 4).indices)
    if dist.get_rank() == 0:
        model.load_state_dict(given)
    ddp = DistributedDataParallel(model)
    x = torch.linspace(-1, 1, 24).view(3, 8)
    y, loaded = ddp(x).detach(), topologies(ddp)
    ddp.module.load_state_dict(later)
    return [y, loaded, [fingerprint(given["1.indices"])], topologies(ddp), [fingerprint(later["1.indices"])]]


def test_loading(pools):
    (y, loaded, given, then, later), (y2, loaded2, _, then2, _) = pools(2).run(load_before_and_after)
    assert torch.equal(y, y2) and loaded == loaded2 == given != later and then == then2 == later


def traffic(kind: str) -> tuple[list[int], int]:
    """Bytes that forwards broadcast, and how often connections were validated."""
    sent, validated = [], []
    model = DistributedDataParallel(make(kind))
    model(torch.ones(2, 8))
    original, checked = dist._broadcast_coalesced, CheckedIndices._check
    try:
        dist._broadcast_coalesced = lambda group, tensors, *rest: sent.extend(t.nbytes for t in tensors)
        CheckedIndices._check = lambda self, indices: validated.append(1) or checked(self, indices)
        model(torch.ones(2, 8))
    finally:
        dist._broadcast_coalesced, CheckedIndices._check = original, checked
    return sent, len(validated)


@pytest.mark.parametrize("kind", ["fixed", "int32"])
def test_a_forward_neither_sends_nor_validates_connections(pools, kind):
    assert pools(2).run(traffic, kind) == [([], 0), ([], 0)]


def message(call: Any) -> str:
    try:
        call()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def refusals() -> dict[str, str]:
    fused = make("fixed")
    fused[1].fuse_optimizer(FusedSGD(0.1))
    uneven = nn.Sequential(nn.Linear(8, 16), FixedFanInLinear(16, 40 + dist.get_rank(), 4))
    wrapped = DistributedDataParallel(make("fixed"))
    ignored = make("fixed")
    ignored._ddp_params_and_buffers_to_ignore = ["1.indices"]
    return {
        "fused": message(lambda: DistributedDataParallel(fused)),
        "fused later": message(lambda: wrapped.module[1].fuse_optimizer(FusedSGD(0.1))),
        "uneven": message(lambda: DistributedDataParallel(uneven)),
        "ignored": message(lambda: DistributedDataParallel(ignored)),
    }


def test_what_cannot_be_replicated_is_refused_on_every_rank(pools):
    for found in pools(2).run(refusals):
        assert "updates each replica by its own rows" in found["fused"] and found["fused"].startswith("RuntimeError")
        assert "updates each replica by its own rows" in found["fused later"]
        assert found["uneven"].startswith("ValueError: the ranks' models must be alike")
        assert found["ignored"] == "no error"


def copies() -> list[Any]:
    layer = SparseInputLinear(16, 40, 4) if dist.get_rank() else FixedFanInLinear(16, 40, 4)
    model = DistributedDataParallel(make("fixed"))
    clone, read = copy.deepcopy(model.module), pickle.loads(pickle.dumps(model.module))
    several = [layer, QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(16, 40, 4)), layer.state_dict()]
    dist.broadcast_object_list(several)
    return [topologies(clone), topologies(read), [type(each).__name__ for each in several], topologies(several[0])]


def test_copies_and_broadcast_objects(pools):
    first, second = pools(2).run(copies)
    assert first == second and first[2] == ["FixedFanInLinear", "QuantizedFixedFanInLinear", "OrderedDict"]
    assert first[0] == first[1]
