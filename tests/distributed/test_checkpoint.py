"""Checkpoints: N ranks to M, single process to sharded and back, optimizer state included, bit for bit."""

import os

import pytest
import torch
from torch import nn

from sparse_xmc.distributed import LabelShardedLinear, checkpoint
from sparse_xmc.models import FixedFanInLinear

D, L, K = 20, 53, 4


class Model(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, D)
        self.head = head


def make(sharded: bool, group_size: int, seed: int, dtype: torch.dtype) -> Model:
    torch.manual_seed(seed)
    kind = LabelShardedLinear if sharded else FixedFanInLinear
    return Model(kind(D, L, K, group_size=group_size, dtype=dtype, seed=seed))


def optimizers(model: Model) -> dict[str, torch.optim.Optimizer]:
    return {
        "encoder": torch.optim.SGD(model.encoder.parameters(), lr=0.1),
        "head": torch.optim.AdamW(model.head.parameters(), lr=0.02, betas=(0.8, 0.9)),
    }


def fill(model: Model, opts: dict[str, torch.optim.Optimizer]) -> None:
    """Gradients that depend on a parameter's initial value only, so every layout makes the same step."""
    for parameter in model.parameters():
        parameter.grad = parameter.detach() * 3 + 1
    for optimizer in opts.values():
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.5


def whole(model: Model) -> dict[str, torch.Tensor]:
    layer = model.head.to_layer() if isinstance(model.head, LabelShardedLinear) else model.head
    state = {**{f"head.{k}": v for k, v in layer.state_dict().items()}, "encoder": model.encoder.weight.detach()}
    return {name: tensor.clone() for name, tensor in state.items()}


def save(folder: str, sharded: bool, group_size: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = make(sharded, group_size, 1, dtype)
    opts = optimizers(model)
    fill(model, opts)
    checkpoint.save(folder, model, opts, {"step": 7})
    return whole(model)


def load_and_step(folder: str, sharded: bool, group_size: int, dtype: torch.dtype) -> tuple[dict, dict, float]:
    model = make(sharded, group_size, 2, dtype)
    opts = optimizers(model)
    extra = checkpoint.load(folder, model, opts)
    loaded = whole(model)
    fill(model, opts)
    assert extra == {"step": 7} and opts["head"].param_groups[0]["betas"] == (0.8, 0.9)
    return loaded, whole(model), opts["head"].param_groups[0]["lr"]


@pytest.mark.parametrize("group_size, dtype", [(1, torch.float32), (8, torch.bfloat16)])
def test_any_layout_reads_any_other_and_continues_the_same(pools, tmp_path, group_size, dtype):
    saved, after = {}, []
    for size in (1, 2, 4):
        folder = str(tmp_path / str(size))
        args = (folder, size > 1, group_size, dtype)
        saved[folder] = save(*args) if size == 1 else pools(size).run(save, *args)[0]
    reference = next(iter(saved.values()))
    for folder, state in saved.items():
        assert all(torch.equal(state[name], tensor) for name, tensor in reference.items())
        for size in (1, 2, 4):
            args = (folder, size > 1, group_size, dtype)
            results = [load_and_step(*args)] if size == 1 else pools(size).run(load_and_step, *args)
            for loaded, stepped, lr in results:
                assert all(torch.equal(loaded[name], tensor) for name, tensor in reference.items())
                assert lr == 0.02 * 0.5 * 0.5
                after.append(stepped)
    assert all(torch.equal(one[name], tensor) for one in after for name, tensor in after[0].items())


def test_a_checkpoint_that_was_being_replaced_is_found(tmp_path, monkeypatch):
    folder = checkpoint.step_folder(tmp_path, 3)
    saved = make(False, 1, 0, torch.float32)
    checkpoint.save(folder, saved)

    def lost(partial, target):
        raise KeyboardInterrupt

    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: lost(a, b) if a.endswith(".partial") else replace(a, b))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder, make(False, 1, 5, torch.float32))
    monkeypatch.undo()
    assert not os.path.exists(folder)
    assert checkpoint.latest(tmp_path) == folder
    model = make(False, 1, 9, torch.float32)
    checkpoint.load(folder, model)
    assert torch.equal(model.head.weight, saved.head.weight)
    checkpoint.save(folder, model)
    assert os.listdir(tmp_path) == ["step-0000000003"]


def test_errors(tmp_path):
    folder = str(tmp_path / "step-0000000003")
    model = make(False, 1, 0, torch.float32)
    checkpoint.save(folder, model)
    assert checkpoint.latest(tmp_path) == folder == checkpoint.step_folder(tmp_path, 3)
    assert checkpoint.latest(tmp_path / "nothing") is None
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        checkpoint.load(tmp_path, model)
    with pytest.raises(ValueError, match="no optimizer 'head'"):
        checkpoint.load(folder, model, {"head": torch.optim.SGD(model.head.parameters(), lr=1.0)})
    with pytest.raises(ValueError, match=r"head.weight is \[53, 4\] torch.float32, the model's is \[52, 4\]"):
        checkpoint.load(folder, Model(FixedFanInLinear(D, 52, K)))
    model.head.indices[5] = 3
    checkpoint.save(folder, model)
    with pytest.raises(ValueError, match=r"head: indices\[5\] holds 3 twice"):
        checkpoint.load(folder, make(False, 1, 0, torch.float32))
