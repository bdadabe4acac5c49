"""Checkpoints: N ranks to M, single process to sharded and back, optimizer state included, bit for bit."""

import contextlib
import io
import os
import pathlib
import pickle
import random
import shutil

import pytest
import torch
from torch import nn

from sparse_xmc.distributed import LabelShardedLinear, checkpoint
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.storage.errors import ArtefactError

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


def flipped(path, rng):
    """Turns one bit of a file over."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) * 8)
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)


def test_a_flipped_bit_is_found_before_anything_is_changed(tmp_path):
    model = make(False, 1, 1, torch.float32)
    opts = optimizers(model)
    fill(model, opts)
    checkpoint.save(tmp_path / "step-0000000001", model, opts, {"step": 1})
    other = make(False, 1, 2, torch.float32)
    before = whole(other)
    rng = random.Random(0)
    for path in sorted((tmp_path / "step-0000000001").iterdir()):
        sound = path.read_bytes()
        for _ in range(25):
            flipped(path, rng)
            with pytest.raises(ArtefactError):
                checkpoint.load(tmp_path / "step-0000000001", other, optimizers(other))
            path.write_bytes(sound)
    assert all(torch.equal(tensor, before[name]) for name, tensor in whole(other).items())
    assert checkpoint.load(tmp_path / "step-0000000001", other, optimizers(other)) == {"step": 1}


def test_a_damaged_newest_one_is_passed_over(tmp_path):
    saved = [make(False, 1, seed, torch.float32) for seed in (1, 2)]
    for step, model in enumerate(saved, start=1):
        checkpoint.save(checkpoint.step_folder(tmp_path, step), model, None, {"step": step})
    weights = tmp_path / "step-0000000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.warns(UserWarning, match="checkpoint of step 2 passed over: .*model.safetensors is damaged"):
        assert checkpoint.latest(tmp_path) == checkpoint.step_folder(tmp_path, 1)
    model, lines = make(False, 1, 3, torch.float32), []
    assert checkpoint.load_latest(tmp_path, model, report=lines.append) == {"step": 1}
    assert len(lines) == 1 and torch.equal(model.head.weight, saved[0].head.weight)
    (tmp_path / "step-0000000001" / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match="no intact checkpoint in"):
        checkpoint.load_latest(tmp_path, model, report=lines.append)
    assert checkpoint.load_latest(tmp_path / "none", model) is None


def resume_with_damage(parents: list[str]) -> tuple[list[str], object]:
    lines: list[str] = []
    model = make(True, 1, 5, torch.float32)
    return lines, checkpoint.load_latest(parents[torch.distributed.get_rank()], model, report=lines.append)


def test_all_ranks_pass_over_what_one_finds_damaged(pools, tmp_path):
    for parent in ("a", "b"):
        for step in (1, 2):
            checkpoint.save(checkpoint.step_folder(tmp_path / parent, step), make(False, 1, step, torch.float32))
    weights = tmp_path / "b" / "step-0000000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    for lines, extra in pools(2).run(resume_with_damage, [str(tmp_path / "a"), str(tmp_path / "b")]):
        assert extra == {} and len(lines) == 1
        assert "checkpoint of step 2 passed over: rank 1: " in lines[0] and "is truncated" in lines[0]


OLD = pathlib.Path(__file__).parents[1] / "artefacts" / "sharded" / "step-0000000007"


def old_model() -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    model = nn.Sequential(nn.Linear(6, 12), FixedFanInLinear(12, 10, 3))
    return model, {"adam": torch.optim.Adam(model.parameters(), lr=0.5)}


class Evil:
    def __reduce__(self):
        return os.system, ("touch PWNED",)


@pytest.mark.parametrize("place", [".metadata", "__0_0.distcp"])
def test_no_pickle_of_an_old_checkpoint_runs(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, "old")
    if place == ".metadata":
        pathlib.Path("old", place).write_bytes(pickle.dumps(Evil()))
    else:
        content = io.BytesIO()
        torch.save(Evil(), content)
        size = os.path.getsize(f"old/{place}")
        pathlib.Path("old", place).write_bytes(content.getvalue().ljust(size, b"\0"))
    with pytest.raises(ArtefactError):
        checkpoint.load("old", *old_model())
    assert os.listdir() == ["old"]


def test_damage_of_an_old_checkpoint_is_one_kind_of_error(tmp_path):
    rng = random.Random(0)
    for i in range(60):
        folder = tmp_path / str(i)
        shutil.copytree(OLD, folder)
        flipped(rng.choice(sorted(folder.iterdir())), rng)
        model, opts = old_model()
        with contextlib.suppress(ArtefactError, ValueError):  # what damage leaves sound is not seen: no checksums
            checkpoint.load(folder, model, opts)


def load_old() -> torch.Tensor:
    model = nn.Sequential(nn.Linear(6, 12), LabelShardedLinear(12, 10, 3, seed=4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    assert checkpoint.load(OLD, model, {"adam": optimizer}) == {"epoch": 3}
    return model[1].to_layer().weight


def test_an_old_checkpoint_is_read_by_several_ranks(pools):
    model, opts = old_model()
    checkpoint.load(OLD, model, opts)
    for weight in pools(2).run(load_old):
        assert torch.equal(weight, model[1].weight)
