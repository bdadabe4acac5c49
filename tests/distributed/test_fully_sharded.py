"""Layers under ``fully_shard`` (FSDP2), FSDP1 and flattened parameters: as one process with all rows, or one clear error."""

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from sparse_xmc.distributed import LabelShardedLinear
from sparse_xmc.models import (
    DenseLinear,
    FixedFanInLinear,
    HeadTailLinear,
    QuantizedFixedFanInLinear,
    SparseInputLinear,
)
from sparse_xmc.models.checked_indices import CheckedIndices, fingerprint
from sparse_xmc.optim import FusedSGD, parameter_groups
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="about frameworks, on the CPU kernels")
LISTS = [[1, 7], [], [40], [3]]


class Model(nn.Module):
    """An encoder and a head of its own on every rank; its forward is the loss."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(8, 16), head

    def forward(self, x: torch.Tensor, targets: Any = None) -> torch.Tensor:
        features = self.encoder(x)
        return self.head(features) if targets is None else self.head.loss(features, targets)


HEADS: dict[str, Callable[..., nn.Module]] = {
    "fixed": lambda: FixedFanInLinear(16, 41, 4),
    "grouped": lambda: FixedFanInLinear(16, 41, 4, False, group_size=8),
    "head_tail": lambda: HeadTailLinear(16, 41, 4, num_head=5),
}


def make(kind: str = "fixed") -> Model:
    torch.manual_seed(100 + dist.get_rank())
    return Model(HEADS[kind]())


def topologies(model: nn.Module) -> list[int]:
    return [fingerprint(layer.indices) for layer in model.modules() if isinstance(layer, CheckedIndices)]


def train(kind: str, itself: bool, mesh_shape: tuple[int, ...] = (2,)) -> dict[str, Any]:
    """Two steps beside one process that has rank 0's model and the rows of all ranks."""
    model, size = make(kind), dist.get_world_size()
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicas", "shards")[-len(mesh_shape) :])
    own = topologies(model)
    if len(mesh_shape) > 1:  # replicas of any module start alike
        for parameter in model.parameters():
            dist.broadcast(parameter.detach(), 0)
    if itself:
        register_fsdp_forward_method(fully_shard(model.head, mesh=mesh), "loss")
    fully_shard(model, mesh=mesh)
    states = [get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))]
    dist.broadcast_object_list(states)
    whole = make(kind)
    whole.load_state_dict(states[0])
    optimizers = [torch.optim.AdamW(parameter_groups(one, 1e-2), lr=1e-2) for one in (model, whole)]
    x, count = torch.linspace(-1, 1, 32).view(4, 8), 4 // size
    rows = slice(dist.get_rank() * count, (dist.get_rank() + 1) * count)
    losses = []
    for _ in range(2):
        mine = model(x[rows], LISTS[rows])
        together = whole(x, LISTS)
        for loss, optimizer in zip((mine, together), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        total = mine.detach().clone()
        dist.all_reduce(total)
        losses.append((float(total) / size, float(together.detach())))
    return {"own": own, "after": topologies(model), "losses": losses}


@pytest.mark.parametrize("itself", [False, True], ids=["root", "head"])
@pytest.mark.parametrize("kind", HEADS)
def test_fully_sharded_training_is_that_of_one_process(pools, kind, itself):
    first, second = pools(2).run(train, kind, itself)
    assert first["own"] != second["own"] and first["own"] == first["after"] == second["after"]
    for mine, together in first["losses"]:
        assert mine == pytest.approx(together, rel=1e-5)
    assert first["losses"][0] != first["losses"][1]


def test_hybrid_sharding_on_a_mesh_of_two_dimensions(pools):
    """Two replicas of two shards: the connections of rank 0 reach all four ranks."""
    first, *others = pools(4).run(train, "fixed", False, (2, 2))
    for other in others:
        assert first["own"] == first["after"] == other["after"] != other["own"]
    for mine, together in first["losses"]:
        assert mine == pytest.approx(together, rel=1e-5)


def other_ways() -> dict[str, Any]:
    seen: dict[str, Any] = {}
    x, targets = torch.linspace(-1, 1, 16).view(2, 8), LISTS[:2]
    narrow = make()
    fully_shard(narrow, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    seen["bfloat16"] = bool(narrow(x, targets).isfinite())
    alone = make()
    fully_shard(alone.head)
    register_fsdp_forward_method(alone.head, "loss")
    alone(x, targets).backward()
    seen["registered loss"] = alone.head.weight.grad is not None
    ignored = make()
    fully_shard(ignored, ignored_params=set(ignored.head.parameters()))
    ignored(x, targets).backward()
    seen["ignored"] = type(ignored.head.weight.grad).__name__
    eight_bit = Model(QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(16, 41, 4, seed=1)))
    fully_shard(eight_bit)
    with torch.no_grad():
        seen["8 bit"] = list(eight_bit(x).shape)
    return seen


def test_other_ways_to_wrap(pools):
    for seen in pools(2).run(other_ways):
        assert seen == {"bfloat16": True, "registered loss": True, "ignored": "Tensor", "8 bit": [2, 41]}


def from_meta() -> dict[str, Any]:
    with torch.device("meta"):
        model = Model(FixedFanInLinear(16, 41, 4, prior=[0.25] * 40 + [0.5]))
    fully_shard(model)
    model.to_empty(device="cpu")
    torch.rand(dist.get_rank() + 1)  # the ranks' generators stand at different places
    for layer in (model.encoder, model.head):
        layer.reset_parameters()
    weight, bias = (parameter.full_tensor().detach() for parameter in (model.head.weight, model.head.bias))
    model.head.reset_parameters(7)
    whole = FixedFanInLinear(16, 41, 4, seed=7)
    same = torch.equal(model.head.weight.full_tensor(), whole.weight) and torch.equal(model.head.indices, whole.indices)
    model(torch.ones(2, 8), LISTS[:2]).backward()
    return {"weight": weight, "bias": bias, "topology": topologies(model), "same": same}


def test_a_model_from_meta_draws_one_head(pools):
    first, second = pools(2).run(from_meta)
    assert first["topology"] == second["topology"] and first["same"] and second["same"]
    assert 0.2 < float(first["weight"].std()) < 0.4 and torch.equal(first["weight"], second["weight"])
    torch.testing.assert_close(first["bias"].sigmoid(), torch.tensor([0.25] * 40 + [0.5]))


def checkpointed(folder: str) -> dict[str, Any]:
    x, targets = torch.ones(2, 8), LISTS[:2]
    models, optimizers = [make(), make()], []
    for model in models:
        torch.manual_seed(3)
        model.head.reset_parameters(len(optimizers))
        fully_shard(model)
        optimizers.append(torch.optim.AdamW(model.parameters(), lr=0.1))
    models[0](x, targets).backward()
    optimizers[0].step()
    state = dict(zip(("model", "optimizer"), get_state_dict(models[0], optimizers[0]), strict=True))
    dcp.save(state, checkpoint_id=folder)
    read = dict(zip(("model", "optimizer"), get_state_dict(models[1], optimizers[1]), strict=True))
    dcp.load(read, checkpoint_id=folder)
    set_state_dict(models[1], optimizers[1], model_state_dict=read["model"], optim_state_dict=read["optimizer"])
    return {
        "losses": [float(model(x, targets).detach()) for model in models],
        "topologies": [topologies(m) for m in models],
    }


def test_distributed_checkpoints(pools):
    with tempfile.TemporaryDirectory() as folder:
        for seen in pools(2).run(checkpointed, folder):
            assert seen["losses"][0] == seen["losses"][1] and seen["topologies"][0] == seen["topologies"][1]


def older_ways() -> dict[str, Any]:
    """FSDP1, and parameters that become views of one flat buffer, as DeepSpeed's and Megatron's optimizers keep them."""
    seen: dict[str, Any] = {}
    x, targets = torch.linspace(-1, 1, 16).view(2, 8), LISTS[:2]
    for original in (False, True):
        model = make()
        wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=original)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        for _ in range(2):
            wrapped(x, targets).backward()
            optimizer.step()
            optimizer.zero_grad()
        with FullyShardedDataParallel.summon_full_params(wrapped):
            torch.rand(dist.get_rank() + 1)
            rewired = int(model.head.rewire_(fraction=0.5))
        wrapped(x, targets).backward()
        seen[f"FSDP1, {original}"] = (topologies(model), rewired)
    flat = make()
    reference, parameters = copy.deepcopy(flat), list(flat.parameters())
    buffer = torch.cat([parameter.detach().flatten() for parameter in parameters])
    parts = buffer.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.data = part.view_as(parameter)
    flat(x, targets).backward()
    buffer -= 0.1 * torch.cat([parameter.grad.flatten() for parameter in parameters])
    reference(x, targets).backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    seen["flat"] = float(flat(x, targets).detach()) == pytest.approx(float(reference(x, targets).detach()), rel=1e-6)
    return seen


def test_fsdp1_and_flat_buffers(pools):
    first, second = pools(2).run(older_ways)
    assert first == second and first["flat"]
    assert first["FSDP1, False"][1] == first["FSDP1, True"][1] == 82


REFUSALS = {
    "loss outside": "TypeError: weight is a DTensor",
    "topk outside": "TypeError: weight is a DTensor",
    "rewire": "TypeError: weight is a DTensor",
    "to_dense": "TypeError: weight is a DTensor",
    "to_sparse_csr": "TypeError: weight is a DTensor",
    "quantize": "TypeError: weight is a DTensor",
    "sparse input": "TypeError: weight is a DTensor",
    "add_labels": "RuntimeError: DistributedDataParallel or FSDP holds the parameters",
    "remove_labels": "RuntimeError: DistributedDataParallel or FSDP holds the parameters",
    "add_labels, DDP": "RuntimeError: DistributedDataParallel or FSDP holds the parameters",
    "add_labels, dense": "RuntimeError: DistributedDataParallel or FSDP holds the parameters",
    "remove_labels, dense, DDP": "RuntimeError: DistributedDataParallel or FSDP holds the parameters",
    "fused before": "RuntimeError: the layer: a fused optimizer updates each replica by its own rows",
    "fused after": "RuntimeError: a fused optimizer updates each replica by its own rows",
    "sharded labels": "RuntimeError: the layer holds this rank's labels of a LabelShardedLinear",
    "sharded labels, FSDP1": "RuntimeError: head.shard holds this rank's labels of a LabelShardedLinear",
    "tensor parallel": "NotImplementedError: ColwiseParallel",
    "distribute_module": "TypeError: the weight of a FixedFanInLinear can't become a DTensor",
    "broadcast_from_rank0": "RuntimeError: Invalid scalar type",  # torch sends buffers as they are
    "emptied parameters": "ValueError: weight must be [out_features, fan_in], got shape [0]",
}


def refused() -> dict[str, str]:
    rows, lists = torch.ones(2, 16), LISTS[:2]
    sharded, sparse, ddp, emptied = make(), Model(SparseInputLinear(16, 41, 4)), make(), make()
    fully_shard(sharded)
    fully_shard(sparse)
    DistributedDataParallel(ddp)
    cut_dense, ddp_dense = Model(DenseLinear(16, 41)), Model(DenseLinear(16, 41))
    fully_shard(cut_dense)
    DistributedDataParallel(ddp_dense)
    copy.deepcopy(ddp_dense).head.add_labels_(2)  # a copy is in no wrapper
    for parameter in emptied.head.parameters():
        parameter.data = torch.empty(0)  # what ZeRO-3 leaves outside of its gathering
    from_rank0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    fused = make()
    fused.head.fuse_optimizer(FusedSGD(0.1))
    calls: dict[str, Callable[[], Any]] = {
        "loss outside": lambda: sharded.head.loss(rows, lists),
        "topk outside": lambda: sharded.head.topk(rows, 2),
        "rewire": lambda: sharded.head.rewire_(fraction=0.5),
        "to_dense": lambda: sharded.head.to_dense(),
        "to_sparse_csr": lambda: sharded.head.to_sparse_csr(),
        "quantize": lambda: QuantizedFixedFanInLinear.from_layer(sharded.head),
        "sparse input": lambda: sparse.head.loss(rows.to_sparse_csr(), lists),
        "add_labels": lambda: sharded.head.add_labels_(2),
        "remove_labels": lambda: sharded.head.remove_labels_([0]),
        "add_labels, DDP": lambda: ddp.head.add_labels_(2),
        "add_labels, dense": lambda: cut_dense.head.add_labels_(2),
        "remove_labels, dense, DDP": lambda: ddp_dense.head.remove_labels_([0]),
        "fused before": lambda: fully_shard(fused),
        "fused after": lambda: sharded.head.fuse_optimizer(FusedSGD(0.1)),
        "sharded labels": lambda: fully_shard(Model(LabelShardedLinear(16, 41, 4))),
        "sharded labels, FSDP1": lambda: FullyShardedDataParallel(
            Model(LabelShardedLinear(16, 41, 4)), device_id=torch.device("cpu")
        ),
        "tensor parallel": lambda: parallelize_module(
            make(), init_device_mesh("cpu", (2,)), {"head": ColwiseParallel()}
        ),
        "distribute_module": lambda: distribute_module(make().head, init_device_mesh("cpu", (2,))),
        "broadcast_from_rank0": lambda: set_model_state_dict(
            sharded, make().state_dict() if dist.get_rank() == 0 else {}, options=from_rank0
        ),
        "emptied parameters": lambda: emptied(torch.ones(2, 8), lists),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
            found[name] = "no error"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def test_what_does_not_work_says_what_to_use(pools):
    for found in pools(2).run(refused):
        assert found.keys() == REFUSALS.keys()
        for name, text in REFUSALS.items():
            assert found[name].startswith(text), name
