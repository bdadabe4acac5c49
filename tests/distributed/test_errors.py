"""Arguments that do not fit, on all ranks or on one: a clear error on every rank, before or instead of a hang."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from sparse_xmc.distributed import LabelShardedLinear
from sparse_xmc.optim.fused import FusedSGD


def message(call, kind: type[Exception] = ValueError) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    return "no error"


def wrong_calls() -> dict[str, str]:
    rank = dist.get_rank()
    head = LabelShardedLinear(8, 10, 3, seed=0)
    x, targets = torch.randn(2, 8), torch.eye(2, 10).to_sparse_csr()
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("labels",))
    square = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "labels"))
    outside = torch.sparse_csr_tensor([0, 1, 1], [10], [1.0], size=(2, 10), check_invariants=False)
    return {
        "too few": message(lambda: LabelShardedLinear(8, 4, 3, group_size=4, seed=0)),
        "sizes": message(lambda: LabelShardedLinear(8, 10, 3, sizes=[9, 2])),
        "disagree": message(lambda: LabelShardedLinear(8, 10 + rank, 3, seed=0)),
        "disagree on sizes": message(lambda: LabelShardedLinear(8, 10, 3, sizes=[9 - rank, 1 + rank])),
        "mesh": message(lambda: LabelShardedLinear(8, 10, 3, mesh="labels"), TypeError),
        "label_dim": message(lambda: LabelShardedLinear(8, 10, 3, mesh=square, label_dim="tp")),
        "mesh device": message(lambda: LabelShardedLinear(8, 10, 3, mesh=mesh, device="meta")),
        "DTensor targets": message(lambda: head.loss(x, DTensor.from_local(targets.to_dense(), mesh)), TypeError),
        "DTensor": message(lambda: head.loss(DTensor.from_local(x, mesh, [Shard(0)]), targets), TypeError),
        "device": message(lambda: head.loss(x.to("meta"), targets)),
        "classes' device": message(
            lambda: head.loss(x, torch.zeros(2, dtype=torch.int64, device="meta"), loss="cross_entropy")
        ),
        "width": message(lambda: head.loss(x[:, :7], targets)),
        "rows": message(lambda: head.loss(x[:1], targets)),
        "labels": message(lambda: head.loss(x, torch.eye(2, 11).to_sparse_csr())),
        "one rank's labels": message(lambda: head.loss(x, outside if rank else targets)),
        "dtype": message(lambda: head.loss(x.bfloat16() if rank else x, targets)),
        "gradient": message(lambda: head.loss(x.double().float().requires_grad_(bool(rank)), targets)),
        "reduction": message(lambda: head.loss(x, targets, reduction="none")),
        "k": message(lambda: head.topk(x, 11)),
        "classes": message(lambda: head.loss(x, targets, loss="cross_entropy"), TypeError),
    }


EXPECTED = {
    "too few": "make 1 groups, too few for 2 ranks",
    "sizes": "add up to 10",
    "disagree": "the ranks disagree on",
    "disagree on sizes": "the ranks disagree on",
    "mesh": "DeviceMesh or a ProcessGroup, got str",
    "label_dim": "label_dim must be one of",
    "mesh device": "it is of cpu, device is meta",
    "DTensor targets": "targets.to_local()",
    "DTensor": "x.to_local()",
    "device": "head's device cpu, got meta",
    "classes' device": "device of x cpu, got meta",
    "width": "in_features=8], got shape [2, 7]",
    "rows": "x has 1, targets 2",
    "labels": "not so on ranks [0, 1]",
    "one rank's labels": "not so on ranks [1]",
    "dtype": "same dtype and requires_grad on every rank",
    "gradient": "same dtype and requires_grad on every rank",
    "reduction": "'mean', 'mean_all' or 'sum', got 'none'",
    "k": "out_features=10, got 11",
    "classes": "int64",
}


def test_every_rank_raises_a_clear_error(pools):
    for found in pools(2).run(wrong_calls):
        assert found.keys() == EXPECTED.keys()
        for name, part in EXPECTED.items():
            assert part in found[name], f"{name}: {found[name]}"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.head = nn.Linear(8, 8), LabelShardedLinear(8, 10, 3, seed=0)

    def forward(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.head.loss(self.encoder(x), targets)


def wrapped() -> dict[str, str | float]:
    """Loss, or the error, of models whose head is wrapped with the rest, and of those where it is left out."""
    from torch.distributed.fsdp import fully_shard

    x, targets = torch.linspace(-1, 1, 16).view(2, 8), torch.eye(2, 10).to_sparse_csr()
    names = [f"head.{name}" for name in Model().head.state_dict()]

    def call(wrap: Callable[[Model], nn.Module]) -> str | float:
        try:
            loss = wrap(Model())(x, targets)
            loss.backward()
            return float(loss)
        except (ValueError, RuntimeError, TypeError) as error:
            return f"{type(error).__name__}: {error}"

    def ddp(model: Model, ignored: list[str]) -> nn.Module:
        model._ddp_params_and_buffers_to_ignore = ignored
        return nn.parallel.DistributedDataParallel(model)

    def fsdp_of_the_head(model: Model) -> nn.Module:
        fully_shard(model.head)
        return model

    return {
        "plain": call(lambda model: model),
        "DDP": call(lambda model: ddp(model, [])),
        "DDP without the indices": call(lambda model: ddp(model, names[-1:])),
        "DDP without the head": call(lambda model: ddp(model, names)),
        "FSDP": call(fully_shard),
        "FSDP of the head": call(fsdp_of_the_head),
        "FSDP without the head": call(lambda model: fully_shard(model, ignored_params=set(model.head.parameters()))),
    }


def test_a_head_that_is_wrapped_with_the_encoder_is_found(pools):
    for found in pools(2).run(wrapped):
        loss = found["plain"]
        assert found["DDP without the head"] == loss == found["FSDP without the head"]
        assert str(found["DDP"]).startswith("RuntimeError")  # no 16-bit buffers
        assert "all ranks hold the same weights for their different labels" in str(found["DDP without the indices"])
        for name in ("FSDP", "FSDP of the head"):
            assert "this rank's labels of a LabelShardedLinear" in str(found[name]), name


def fused_on_a_mesh() -> list[str]:
    x, targets = torch.randn(2, 8, requires_grad=True), torch.eye(2, 10).to_sparse_csr()
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "labels"))
    heads = [LabelShardedLinear(8, 10, 3, seed=0, mesh=mesh) for mesh in (square, None)]
    for head in heads:
        head.shard.fuse_optimizer(FusedSGD(0.1))
    classes = torch.zeros(2, dtype=torch.int64)
    return [
        message(lambda: heads[0].loss(x, targets)),
        message(lambda: heads[1].loss(x, classes, loss="cross_entropy")),
        message(lambda: heads[1].loss(x, targets).backward()),
    ]


def test_a_fused_optimizer_takes_no_replicas_and_no_cross_entropy(pools):
    for replicas, classes, fine in pools(4).run(fused_on_a_mesh):
        assert "each of the 2 replicas by its own rows, so that they drift apart" in replicas
        assert "loss='cross_entropy'" in classes and fine == "no error"


def test_without_a_process_group_the_head_is_whole():
    head = LabelShardedLinear(8, 10, 3, seed=0)
    assert head.labels == range(10) and "rank 0 of 1" in repr(head)
    with pytest.raises(ValueError, match="fan_in"):
        LabelShardedLinear(8, 10, 9)
