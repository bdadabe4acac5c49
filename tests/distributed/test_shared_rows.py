"""Sharded layers of a model whose encoder every rank runs on the same rows: everything as in one process."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.shared_rows import SharedRows, shard_model_
from sparse_xmc.models import FixedFanInLinear

D, L, K = 12, 53, 4


def train(ranks: Ranks | None, group_size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
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
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    losses = []
    for step in range(2):
        optimizer.zero_grad()
        loss = model["head"].loss(model["encoder"](x), targets)
        loss.backward()
        optimizer.step()
        model["head"].rewire_(fraction=0.3, scope="global" if step else "row", seed=step, optimizer=optimizer)
        losses.append(loss.detach())
    with torch.no_grad():
        features = model["encoder"](x)
        scores, labels = model["head"].topk(features, 30)
        logits = model["head"](features)
    head = model["head"]
    found = {"losses": torch.stack(losses), "scores": scores, "labels": labels, "logits": logits}
    own = {"weight": head.weight.detach(), "bias": head.bias.detach(), "indices": head.indices}
    assert ranks is None or isinstance(head, SharedRows)
    return {**found, "encoder": model["encoder"].weight.detach()}, own


def sharded(group_size: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return train(Ranks(dist.group.WORLD, torch.device("cpu")), group_size)


def check_equal(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    if expected.is_floating_point():
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=lambda text: f"{name}: {text}")
    else:
        assert torch.equal(got, expected), name


@pytest.mark.parametrize("group_size", [1, 8])
def test_two_ranks_do_what_one_process_does(pools, group_size):
    expected, whole = train(None, group_size)
    results = pools(2).run(sharded, group_size)
    for got, _ in results:
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            check_equal(name, got[name], value)
    for name, value in whole.items():
        check_equal(name, torch.cat([own[name] for _, own in results]), value)
