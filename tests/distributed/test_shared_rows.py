"""Sharded layers of a model whose encoder every rank runs on the same rows: everything as in one process."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.shared_rows import shard_model_, whole_state
from sparse_xmc.models import FixedFanInLinear

D, L, K = 12, 53, 4


def train(ranks: Ranks | None, group_size: int) -> dict[str, torch.Tensor]:
    """Two steps with rewiring between them, then predictions and the whole state."""
    torch.manual_seed(0 if ranks is None or ranks.rank == 0 else 5)  # the first rank's model counts
    model = nn.ModuleDict(
        {"encoder": nn.Linear(D, D), "head": FixedFanInLinear(D, L, K, group_size=group_size, seed=3)}
    )
    if ranks is not None:
        shard_model_(model, ranks)
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
    own = len(model["head"].weight)
    with whole_state(model):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"losses": torch.stack(losses), "scores": scores, "labels": labels, "logits": logits, **state, "own": own}


def sharded(group_size: int) -> dict[str, torch.Tensor]:
    return train(Ranks(dist.group.WORLD, torch.device("cpu")), group_size)


@pytest.mark.parametrize("group_size", [1, 8])
def test_two_ranks_do_what_one_process_does(pools, group_size):
    expected = train(None, group_size)
    results = pools(2).run(sharded, group_size)
    assert sum(got.pop("own") for got in results) == expected.pop("own") == L
    for got in results:
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            if value.is_floating_point():
                torch.testing.assert_close(
                    got[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
                )
            else:
                assert torch.equal(got[name], value), name
