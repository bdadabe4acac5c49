"""The cost model: bytes sent against bytes counted at the collectives, and its limits."""

import pytest
import torch
import torch.distributed as dist

from bench.studies.cost_model import Head, rank_memory, sent_bytes, step_seconds
from sparse_xmc.distributed import LabelShardedLinear

D, L, B, POSITIVES = 32, 200, 8, 3


def counted_step() -> dict[str, float]:
    """Payload that this rank hands to each kind of collective in one training step, as bytes sent."""
    others, rank = dist.get_world_size() - 1, dist.get_rank()
    head = LabelShardedLinear(D, L, 4, seed=0)
    rows = B // (others + 1)
    x = torch.randn(rows, D, requires_grad=True)
    columns = torch.stack([torch.randperm(L)[:POSITIVES].sort().values for _ in range(rows)])
    targets = torch.sparse_csr_tensor(
        torch.arange(rows + 1) * POSITIVES, columns.flatten(), torch.ones(columns.numel()), (rows, L)
    )
    head.loss(x, targets)  # ranks compare the embeddings' dtype in the first step
    sent = {"gather": 0.0, "scatter": 0.0, "reduce": 0.0}
    from sparse_xmc.distributed import ranks

    gather, scatter, reduce = ranks._all_gather, dist.all_to_all_single, dist.all_reduce

    def count_gather(out, mine, **options):
        sent["gather"] += others * mine.nbytes
        return gather(out, mine, **options)

    def count_scatter(out, blocks, out_sizes, in_sizes, **options):
        sent["scatter"] += blocks.nbytes - blocks[: in_sizes[rank]].nbytes
        return scatter(out, blocks, out_sizes, in_sizes, **options)

    def count_reduce(tensor, **options):
        sent["reduce"] += 2 * others / (others + 1) * tensor.nbytes
        return reduce(tensor, **options)

    ranks._all_gather, dist.all_to_all_single, dist.all_reduce = count_gather, count_scatter, count_reduce
    try:
        head.loss(x, targets).backward()
    finally:
        ranks._all_gather, dist.all_to_all_single, dist.all_reduce = gather, scatter, reduce
    return sent


@pytest.mark.parametrize("size", [2, 4])
def test_formula_equals_what_the_collectives_are_given(pools, size):
    formula = sent_bytes(Head(L, D, 4, B, x_bytes=4, positives=POSITIVES), size)
    for sent in pools(size).run(counted_step):
        assert sent["gather"] == formula["targets"] + formula["embeddings"]
        assert sent["scatter"] == formula["embeddings' gradient"]
        assert sent["reduce"] == formula["loss"]


def test_predictions_move_the_right_way():
    head = Head(10**8, 768, 64, 1024)
    assert sum(sent_bytes(head, 1).values()) == 0 and step_seconds(head, 1)["communication"] == 0
    assert rank_memory(head, 8) < rank_memory(head, 1) / 7
    assert step_seconds(head, 64)["compute"] == pytest.approx(step_seconds(head, 1)["compute"] / 64)
    assert step_seconds(head, 1024)["communication"] > step_seconds(head, 8)["communication"]
