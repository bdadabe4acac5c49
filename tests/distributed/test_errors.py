"""Arguments that do not fit, on all ranks or on one: a clear error on every rank, before or instead of a hang."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from sparse_xmc.distributed import LabelShardedLinear


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
        "DTensor": message(lambda: head.loss(DTensor.from_local(x, mesh, [Shard(0)]), targets), TypeError),
        "device": message(lambda: head.loss(x.to("meta"), targets)),
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
    "DTensor": "x.to_local()",
    "device": "head's device cpu, got meta",
    "width": "in_features=8], got shape [2, 7]",
    "rows": "x has 1, targets 2",
    "labels": "not so on ranks [0, 1]",
    "one rank's labels": "not so on ranks [1]",
    "dtype": "same dtype and requires_grad on every rank",
    "gradient": "same dtype and requires_grad on every rank",
    "reduction": "'mean' or 'sum', got 'none'",
    "k": "out_features=10, got 11",
    "classes": "int64",
}


def test_every_rank_raises_a_clear_error(pools):
    for found in pools(2).run(wrong_calls):
        assert found.keys() == EXPECTED.keys()
        for name, part in EXPECTED.items():
            assert part in found[name], f"{name}: {found[name]}"


def test_without_a_process_group_the_head_is_whole():
    head = LabelShardedLinear(8, 10, 3, seed=0)
    assert head.labels == range(10) and "rank 0 of 1" in repr(head)
    with pytest.raises(ValueError, match="fan_in"):
        LabelShardedLinear(8, 10, 9)
