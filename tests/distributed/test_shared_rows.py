"""Sharded layers of a model whose encoder every rank runs on the same rows: everything as in one process."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from sparse_xmc.distributed import LabelShardedLinear
from sparse_xmc.distributed.model import shard_model_
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.models import FixedFanInLinear

D, L, K = 12, 53, 4


def train(ranks: Ranks | None, group_size: int, loss: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Two steps with rewiring between them, then what all ranks know alike, and what each has of the head."""
    torch.manual_seed(0 if ranks is None or ranks.rank == 0 else 5)  # the first rank's model counts
    device = None if ranks is None else "meta"
    model = nn.ModuleDict(
        {"encoder": nn.Linear(D, D), "head": FixedFanInLinear(D, L, K, group_size=group_size, device=device, seed=3)}
    )
    if ranks is not None:
        shard_model_(model, ranks, seed=3)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, D, generator=generator)
    targets = (torch.rand(6, L, generator=generator) < 0.1).float().to_sparse_csr()
    options = {
        "bce": {},
        "squared_hinge": {
            "reduction": "mean_all",
            "pos_weight": torch.linspace(0.5, 2, L),
            "sample_weight": torch.linspace(0.1, 1, 6),
        },
        "cross_entropy": {"label_smoothing": 0.1},
    }[loss]
    expected = torch.arange(6) * 8 if loss == "cross_entropy" else targets
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for step in range(2):
        optimizer.zero_grad()
        value = model["head"].loss(model["encoder"](x), expected, loss=loss, **options)
        value.backward()
        optimizer.step()
        model["head"].rewire_(fraction=0.3, scope="global" if step else "row", seed=step, optimizer=optimizer)
        losses.append(value.detach())
    with torch.no_grad():
        features = model["encoder"](x)
        scores, labels = model["head"].topk(features, 30)
        others = model["head"].topk(features[:, None], 30, exclude=targets)[1]
        logits = model["head"](features)
    head = model["head"]
    found = {"losses": torch.stack(losses), "scores": scores, "labels": labels, "others": others, "logits": logits}
    assert ranks is None or isinstance(head, LabelShardedLinear)
    own = {name: tensor.clone() for name, tensor in (head if ranks is None else head.shard).state_dict().items()}
    return {**found, "encoder": model["encoder"].weight.detach()}, own


def sharded(group_size: int, loss: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return train(Ranks(dist.group.WORLD, torch.device("cpu")), group_size, loss)


def check_equal(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    if expected.is_floating_point():
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")
    else:
        assert torch.equal(got, expected), name


@pytest.mark.parametrize("group_size, loss", [(1, "bce"), (8, "squared_hinge"), (1, "cross_entropy")])
def test_two_ranks_do_what_one_process_does(pools, group_size, loss):
    expected, whole = train(None, group_size, loss)
    results = pools(2).run(sharded, group_size, loss)
    for got, _ in results:
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            check_equal(name, got[name], value)
    for name, value in whole.items():
        check_equal(name, torch.cat([own[name] for _, own in results]), value)


def as_layer(average: bool) -> tuple[torch.Tensor, ...]:
    """A head on a 2 x 2 mesh whose label ranks share their rows: gradient of x, and the layer that comes back."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "labels"))
    layer = FixedFanInLinear(D, L, K, seed=3, prior=2.0)
    head = LabelShardedLinear.from_layer(layer, mesh=mesh, rows="shared", average_gradients=average)
    part = {name.removeprefix("shard."): tensor.clone() for name, tensor in head.state_dict().items()}
    head.shard.reset_parameters(5)
    head.load_state_dict(part)  # this rank's labels, under the names of the whole layer
    x, labels = rows_and_labels()
    own = slice(0, 3) if mesh.get_rank() < 2 else slice(3, 6)
    x = x[own].requires_grad_()
    head.loss(x, labels[own]).backward()
    return x.grad, head.shard.weight.grad, *(tensor.clone() for tensor in head.to_layer().state_dict().values())


def rows_and_labels() -> tuple[torch.Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, D, generator=generator), [[row, row * 8] for row in range(6)]


def test_a_mesh_of_replicas_and_ranks_with_the_same_rows(pools):
    layer = FixedFanInLinear(D, L, K, seed=3, prior=2.0)
    x, labels = rows_and_labels()
    layer.loss(x.requires_grad_(), labels).backward()
    for average in (True, False):
        results = pools(4).run(as_layer, average)
        for rank, (dx, _, *tensors) in enumerate(results):
            check_equal("dx", dx / (2 if average else 1), x.grad[:3] if rank < 2 else x.grad[3:])
            for name, tensor in zip(layer.state_dict(), tensors, strict=True):
                assert torch.equal(tensor, layer.state_dict()[name]), name
        for pair in (results[:2], results[2:]):
            check_equal("dw", torch.cat([result[1] for result in pair]), layer.weight.grad)


def test_rows_are_own_or_shared():
    with pytest.raises(ValueError, match="rows must be 'own' or 'shared', got 'both'"):
        LabelShardedLinear(D, L, K, rows="both")


def test_labels_of_a_part_do_not_change():
    with pytest.raises(ValueError, match="change those of the whole layer"):
        LabelShardedLinear(D, L, K, seed=0).shard.remove_labels_([1])
