"""A run's model and checkpoints on several ranks: every rank makes its own labels only, any number of ranks goes on."""

from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("sklearn")

from sparse_xmc.app.build import build, build_encoder, build_optimizers
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.sharding import TrainingRanks, label_shards
from sparse_xmc.app.trainer import Trainer
from sparse_xmc.data import SparseInputs
from sparse_xmc.distributed.layout import Layout
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.storage import tensor_file
from sparse_xmc.storage.checkpoint import CheckpointStore, read_folder

N, V, L = 90, 40, 8300  # blocks of more than the 4,096 labels whose weights are drawn at a time
SMALL = {"embedding_dim": 8, "intermediate": 16, "lexical_fan_in": 3, "fan_in": 5, "batch_size": 30, "device": "cpu"}
KINDS = {
    "two heads": {},
    "random, in groups": {"topology": "random", "group_size": 4, "lexical_fan_in": 0},
    "informed, in groups": {"group_size": 4},
    "terms": {"embedding_dim": 0, "intermediate": 0, "lexical_fan_in": 0},
    "head and tail": {"head": "head_tail", "lexical_fan_in": 0},
    "fused": {"fused": True, "lexical_fan_in": 0},
}


class LargestTensor(TorchDispatchMode):
    """Notes the longest matrix that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and not tensor.is_meta:
                self.rows = max(self.rows, len(tensor) if tensor.layout == torch.strided else 0)
        return result


def data() -> tuple[SparseInputs, sp.csr_matrix]:
    rng = np.random.default_rng(0)
    targets = sp.csr_matrix((np.ones(270, np.float32), rng.integers(0, L, 270), np.arange(0, 271, 3)), (N, L))
    targets.sum_duplicates()
    return SparseInputs(sp.random(N, V, 0.3, format="csr", random_state=rng, dtype=np.float32)), targets


def make(kind: str) -> tuple:
    """Model, trainer's other parts and ranks, on all ranks of the pool or in this process alone."""
    inputs, targets = data()
    config = TrainingConfig(**{**SMALL, **KINDS[kind]})
    ranks = Ranks(dist.group.WORLD if dist.is_initialized() else None, torch.device("cpu"))
    encoder = build_encoder(config, V)
    with LargestTensor() as largest:
        model = build(config, encoder, inputs, targets, ranks.device, ranks=ranks)
    return config, model, inputs, targets, ranks, largest.rows


def built(kind: str) -> tuple[int, dict[str, torch.Tensor], set[str]]:
    _, model, _, _, _, rows = make(kind)
    layout = Layout(model)
    return rows, {name: tensor.clone() for name, tensor in layout.whole_state().items()}, set(layout.model_blocks())


@pytest.mark.parametrize("kind", list(KINDS)[:-1])
def test_each_rank_makes_its_own_labels_only(pools, kind):
    rows, whole, _ = built(kind)
    assert rows >= L * 0.9
    results = pools(2).run(built, kind)
    for name, tensor in whole.items():
        parts = [state[name] for _, state, _ in results]
        assert torch.equal(torch.cat(parts) if name in results[0][2] else parts[0], tensor), name
    for rows, _, spread in results:
        assert len(spread) >= 3 and rows <= L / 2 + 4


def go_on(kind: str, source: str | None, target: str) -> int:
    """Trains one epoch, or takes a checkpoint of any number of ranks; saves what it has then."""
    config, model, inputs, targets, ranks, _ = make(kind)
    optimizers = build_optimizers(config, model)
    store = CheckpointStore(source or target)
    store.shards = label_shards(model, [scheduled.optimizer for scheduled in optimizers], ranks)
    trainer = Trainer(model, inputs, targets, optimizers, epochs=1, batch_size=config.batch_size, store=store)
    assert trainer.resume() == (source is not None)
    if source is None:
        trainer.fit()
    else:
        store.folder = target
        with mock.patch.object(tensor_file, "_PIECE_BYTES", 30_000):  # several pieces of a block, of both ranks
            trainer.save()
    TrainingRanks(ranks).meet()
    return trainer.progress.step


@pytest.mark.parametrize("kind", ["two heads", "fused", "random, in groups"])
def test_checkpoints_of_any_number_of_ranks_are_read_exactly_by_any_other(pools, tmp_path, kind):
    def run(size, *args):
        return {go_on(kind, *args)} if size == 1 else set(pools(size).run(go_on, kind, *args))

    for saved_by, read_by in ((1, (2,)), (2, (1, 4)), (4, (1, 2))):
        source = str(tmp_path / f"of {saved_by}")
        assert run(saved_by, None, source) == {3}
        tensors, documents = read_folder(f"{source}/step-0000000003")
        assert tensors["model"]["head.weight"].shape == (L, 5)
        for size in read_by:
            target = str(tmp_path / f"of {saved_by} by {size}")
            assert run(size, source, target) == {3}
            again, same = read_folder(f"{target}/step-0000000003")
            assert same == documents
            for stem in ("model", "state"):
                assert again[stem].keys() == tensors[stem].keys()
                for name, tensor in tensors[stem].items():
                    assert again[stem][name].dtype == tensor.dtype and torch.equal(again[stem][name], tensor), name
