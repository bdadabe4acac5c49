"""A label-sharded head on 2 and 4 gloo ranks gives one process's loss, gradients, updates, top-k and topology."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from sparse_xmc import ops
from sparse_xmc.distributed import LabelShardedLinear
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.optim.fused import FusedAdagrad

D, L, K = 24, 103, 5
ROWS = {1: [11], 2: [7, 4], 4: [3, 0, 6, 2]}  # uneven, and one rank without rows
SIZES = {1: None, 2: [64, 39], 4: [16, 48, 32, 7]}


def data(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings, CSR targets without any positive among the labels 64 and up, classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, D, generator=generator, dtype=torch.float64).to(dtype)
    dense = torch.zeros(11, L)
    dense[:, :64] = (torch.rand(11, 64, generator=generator) < 0.1).float()
    classes = torch.randint(0, L, (11,), generator=generator)
    classes[3] = -100
    return x, dense, classes


def part(tensor: torch.Tensor, rows: list[int], rank: int) -> torch.Tensor:
    return tensor.split(rows)[rank].clone()


def whole_step(group_size: int, dtype: torch.dtype, loss: str) -> dict:
    x, dense, classes = data(dtype)
    head = FixedFanInLinear(D, L, K, group_size=group_size, dtype=dtype, seed=3)
    return step(head, x, dense, classes, loss)


def step(head: nn.Module, x: torch.Tensor, dense: torch.Tensor, classes: torch.Tensor, loss: str) -> dict:
    """One SGD step and what it shows."""
    x.requires_grad_()
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5, momentum=0.9)
    if loss == "cross_entropy":
        value = head.loss(x, classes, loss=loss, label_smoothing=0.1, class_weight=torch.linspace(0.5, 2, L))
    else:
        targets = dense.to_sparse_csr()
        value = head.loss(x, (targets.crow_indices(), targets.col_indices()), loss=loss)
    value.backward()
    optimizer.step()
    return {"loss": value.detach(), "dx": x.grad, **state(head)}


def state(head: nn.Module) -> dict:
    layer = head.to_layer() if isinstance(head, LabelShardedLinear) else head
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


def sharded_step(group_size: int, dtype: torch.dtype, loss: str, uneven: bool) -> dict:
    rank, size = dist.get_rank(), dist.get_world_size()
    x, dense, classes = (part(t, ROWS[size], rank) for t in data(dtype))
    sizes = SIZES[size] if uneven else None
    head = LabelShardedLinear(D, L, K, group_size=group_size, dtype=dtype, seed=3, sizes=sizes, average_gradients=False)
    return step(head, x, dense, classes, loss)


def close(got: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-6, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("group_size, loss", [(1, "bce"), (16, "squared_hinge"), (1, "cross_entropy")])
def test_training_step(pools, size, group_size, loss):
    expected = whole_step(group_size, torch.float32, loss)
    for uneven in (False, True):
        results = pools(size).run(sharded_step, group_size, torch.float32, loss, uneven)
        for rank, got in enumerate(results):
            close(got["loss"], expected["loss"], f"loss of rank {rank}")
            close(got["dx"], part(expected["dx"], ROWS[size], rank), f"dx of rank {rank}")
            close(got["weight"], expected["weight"], "updated weight")
            close(got["bias"], expected["bias"], "updated bias")
            assert torch.equal(got["indices"], expected["indices"])


def fused_steps(sharded: bool) -> dict:
    """Two steps of a fused optimizer; its state is cut as the weights are."""
    x, dense, _ = data(torch.float32)
    rank, size = (dist.get_rank(), dist.get_world_size()) if sharded else (0, 1)
    x, dense = (part(t, ROWS[size], rank) for t in (x, dense))
    head = (LabelShardedLinear if sharded else FixedFanInLinear)(D, L, K, seed=3)
    optimizer = FusedAdagrad(0.5, momentum=0.9, rounding="nearest")
    (head.shard if sharded else head).fuse_optimizer(optimizer)
    losses = []
    for _ in range(2):
        loss = head.loss(x.requires_grad_(), dense.to_sparse_csr())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), **state(head)}


def test_fused_optimizer(pools):
    expected = fused_steps(False)
    for size in (2, 4):
        for got in pools(size).run(fused_steps, True):
            for name in ("losses", "weight", "bias"):
                close(got[name], expected[name], name)


def losses_of_forms(sharing: str) -> list[float]:
    """Losses of targets with a label twice in a row: as they are, and sorted beforehand."""
    rank, size = dist.get_rank(), dist.get_world_size()
    x, pair = data(torch.float32)[0], twice(data(torch.float32)[1])
    if sharing == "own":
        x, pair = part(x, ROWS[size], rank), twice(part(data(torch.float32)[1], ROWS[size], rank))
    head = LabelShardedLinear(D, L, K, seed=3, rows=sharing)
    forms = pair, ops.sort_targets(pair, L)
    return [float(head.loss(x, targets)) for targets in forms]


def twice(dense: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    targets = dense.to_sparse_csr()
    return targets.crow_indices() * 2, targets.col_indices().repeat_interleave(2)


@pytest.mark.parametrize("sharing", ["own", "shared"])
def test_repeated_labels_count_once_and_targets_may_be_sorted(pools, sharing):
    x, dense, _ = data(torch.float32)
    expected = float(FixedFanInLinear(D, L, K, seed=3).loss(x, dense.to_sparse_csr()))
    for got in pools(2).run(losses_of_forms, sharing):
        assert got == pytest.approx([expected] * 2, rel=2e-5)


def sharded_forward_and_topk(k: int) -> tuple:
    rank, size = dist.get_rank(), dist.get_world_size()
    x, dense, _ = (part(t, ROWS[size], rank) for t in data(torch.float32))
    head = LabelShardedLinear(D, L, K, seed=3, sizes=SIZES[size])
    head.shard.weight.data.round_(decimals=1)  # ties
    x.round_()
    with torch.no_grad():
        logits = head(x)
    excluded = [row.nonzero().flatten().tolist() for row in dense]
    plain, excluding = head.topk(x, k), head.topk(x, k, exclude=dense.to_sparse_csr())
    assert all(map(torch.equal, excluding, head.topk(x, k, exclude=excluded)))
    return logits, plain, excluding


@pytest.mark.parametrize("size", [2, 4])
def test_forward_and_topk_are_exact(pools, size):
    x, dense, _ = data(torch.float32)
    head = FixedFanInLinear(D, L, K, seed=3)
    head.weight.data.round_(decimals=1)
    with torch.no_grad():
        logits = head(x.round())
    results = pools(size).run(sharded_forward_and_topk, 20)
    assert torch.equal(torch.cat([shard for shard, _, _ in results], dim=1), logits)
    for found, scores in ((1, logits), (2, logits.masked_fill(dense > 0, -float("inf")))):
        values, labels = scores.sort(dim=1, descending=True, stable=True)
        assert torch.equal(torch.cat([result[found][0] for result in results]), values[:, :20])
        assert torch.equal(torch.cat([result[found][1] for result in results]), labels[:, :20])


def rewired(sharded: bool, group_size: int, options: dict) -> tuple[int, dict, torch.Tensor]:
    kind = LabelShardedLinear if sharded else FixedFanInLinear
    head = kind(D, L, K, group_size=group_size, seed=3)
    layer = head.shard if sharded else head
    layer.weight.data = (layer.weight.data * 20).round() / 20  # ties
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    count = int(head.rewire_(seed=5, optimizer=optimizer, **options))
    return count, state(head), optimizer.state[layer.weight]["momentum_buffer"]


@pytest.mark.parametrize("group_size", [1, 16])
@pytest.mark.parametrize("options", [{"fraction": 0.4}, {"threshold": 0.2}, {"fraction": 0.3, "scope": "global"}])
def test_topology_after_rewiring_is_bit_identical(pools, group_size, options):
    count, expected, momentum = rewired(False, group_size, options)
    assert count > 0
    for size in (2, 4):
        results = pools(size).run(rewired, True, group_size, options)
        for got, whole, _ in results:
            assert got == count
            assert all(torch.equal(whole[name], tensor) for name, tensor in expected.items())
        assert torch.equal(torch.cat([part for _, _, part in results]), momentum)


def mesh_step(loss: str) -> dict:
    """2 x 2: two data replicas of a head on two label ranks, under an encoder in DDP."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "labels"))
    x, dense, classes = (part(t, ROWS[4], dist.get_rank()) for t in data(torch.float32))
    head = LabelShardedLinear(D, L, K, seed=3, mesh=mesh)
    torch.manual_seed(0)
    encoder = nn.parallel.DistributedDataParallel(nn.Linear(D, D))
    return train(encoder, head, x, classes if loss == "cross_entropy" else dense.to_sparse_csr(), loss)


def train(encoder: nn.Module, head: nn.Module, x: torch.Tensor, targets: torch.Tensor, loss: str = "bce") -> dict:
    optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.1, momentum=0.9)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        value = head.loss(encoder(x), targets, loss=loss)
        value.backward()
        optimizer.step()
        losses.append(value.detach())
    return {"losses": torch.stack(losses), "encoder": next(encoder.parameters()).detach(), **state(head)}


@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
def test_two_dimensional_mesh_with_ddp(pools, loss):
    torch.manual_seed(0)
    x, dense, classes = data(torch.float32)
    targets = classes if loss == "cross_entropy" else dense.to_sparse_csr()
    expected = train(nn.Linear(D, D), FixedFanInLinear(D, L, K, seed=3), x, targets, loss)
    for got in pools(4).run(mesh_step, loss):
        for name in ("losses", "encoder", "weight", "bias"):
            close(got[name], expected[name], name)


def fsdp_step() -> dict:
    from torch.distributed.fsdp import fully_shard

    x, dense, _ = (part(t, ROWS[2], dist.get_rank()) for t in data(torch.float32))
    torch.manual_seed(0)
    encoder = nn.Linear(D, D)
    fully_shard(encoder, mesh=init_device_mesh("cpu", (2,)))
    head = LabelShardedLinear(D, L, K, seed=3)
    result = train(encoder, head, x, dense.to_sparse_csr())
    return {**result, "encoder": next(encoder.parameters()).full_tensor().detach()}


def test_encoder_under_fsdp(pools):
    torch.manual_seed(0)
    x, dense, _ = data(torch.float32)
    expected = train(nn.Linear(D, D), FixedFanInLinear(D, L, K, seed=3), x, dense.to_sparse_csr())
    for got in pools(2).run(fsdp_step):
        close(got["encoder"], expected["encoder"], "encoder")
        close(got["weight"], expected["weight"], "weight")
