"""Checkpoints are complete or absent, damage is recognised, a full disk costs nothing that stood before."""

import errno
import os
from types import SimpleNamespace

import pytest
import torch

from sparse_xmc.storage import atomic, checkpoint, tensor_file
from sparse_xmc.storage.checkpoint import (
    CheckpointError,
    CheckpointStore,
    flatten_tensors,
    read_folder,
    restore_tensors,
    write_folder,
)

TENSORS = {"model": {"w": torch.arange(6.0).view(2, 3), "i": torch.tensor([[3, 65535]], dtype=torch.uint16)}}


def test_round_trip(tmp_path):
    write_folder(str(tmp_path / "c"), TENSORS, {"spec": {"a": [1, None]}})
    tensors, documents = read_folder(str(tmp_path / "c"))
    assert tensors["model"]["w"].equal(TENSORS["model"]["w"])
    assert tensors["model"]["i"].dtype == torch.uint16
    assert tensors["model"]["i"].tolist() == [[3, 65535]]
    assert documents == {"spec": {"a": [1, None]}}


def test_files_are_plain_safetensors_written_in_pieces(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setattr(tensor_file, "_PIECE_BYTES", 24)
    numbers = torch.arange(1, 31).view(5, 6)
    tensors = {name: numbers.to(getattr(torch, name)) for name in tensor_file._NAMES}
    tensors |= {"turned": numbers.t(), "empty": torch.empty(0, 3), "one": torch.tensor(2.5), "part": numbers[2:4]}
    tensor_file.save_tensors(str(tmp_path / "t.safetensors"), tensors)
    for loaded in (load_file(tmp_path / "t.safetensors"), tensor_file.load_tensors(str(tmp_path / "t.safetensors"))[0]):
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
            assert torch.equal(loaded[name].double(), tensor.double()), name


def test_nested_state_round_trip():
    state = {"a": [{"b": torch.ones(2), 0: 1.5}, None], "c": (True, torch.tensor(3))}
    structure, tensors = flatten_tensors(state)
    back = restore_tensors(structure, tensors)
    assert back["a"][0]["b"].equal(torch.ones(2))
    assert back["a"][0][0] == 1.5
    assert back["c"][0] is True
    assert back["c"][1].item() == 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), "model.safetensors is truncated"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"\x7f"), "model.safetensors is damaged"),
        (lambda p: p.unlink(), "model.safetensors is missing"),
    ],
)
def test_damage_is_recognised_and_the_checkpoint_before_is_used(tmp_path, damage, message):
    store = CheckpointStore(tmp_path / "s")
    store.save(3, TENSORS, {"n": 3})
    store.save(4, TENSORS, {"n": 4})
    damage(tmp_path / "s" / "step-0000000004" / "model.safetensors")
    reports = []
    step, _, documents = store.load_latest(reports.append)
    assert (step, documents["n"]) == (3, 3)
    assert len(reports) == 1
    assert message in reports[0]
    damage(tmp_path / "s" / "step-0000000003" / "model.safetensors")
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        store.load_latest(reports.append)


@pytest.mark.parametrize("content", ["{}", "null", "[]", '{"n.json": 3}', '{"n.json": [1, 2]}', "{", "\\xff"])
def test_a_damaged_manifest_is_passed_over(tmp_path, content):
    store = CheckpointStore(tmp_path / "s")
    store.save(3, TENSORS, {"n": 3})
    store.save(4, TENSORS, {"n": 4})
    (tmp_path / "s" / "step-0000000004" / "manifest.json").write_bytes(content.encode("latin-1"))
    assert store.load_latest(lambda text: None)[0] == 3


def test_a_manifest_is_required(tmp_path):
    (tmp_path / "c").mkdir()
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        read_folder(str(tmp_path / "c"))


def test_only_the_newest_stay(tmp_path):
    store = CheckpointStore(tmp_path / "s", keep=2)
    assert store.load_latest() is None
    for step in (1, 2, 3):
        store.save(step, TENSORS, {})
    assert store.steps() == [2, 3]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_one_does_not_push_out_intact_ones(tmp_path, keep):
    store = CheckpointStore(tmp_path / "s", keep=keep)
    for step in (1, 9, 2, 3):
        store.save(step, TENSORS, {})
    assert store.steps() == [2, 3][-keep:]


@pytest.mark.parametrize("keep", [0, -1])
def test_one_stays_at_least(tmp_path, keep):
    with pytest.raises(ValueError, match=f"keep must be at least 1, got {keep}"):
        CheckpointStore(tmp_path / "s", keep=keep)


def test_windows_flushes_files_open_for_writing_only(tmp_path, monkeypatch):
    opened = []

    def open_file(path, flags):
        opened.append((path, flags))
        return os.open(path, flags)

    windows = SimpleNamespace(**{**vars(os), "name": "nt", "open": open_file})
    monkeypatch.setattr(atomic, "os", windows)
    (tmp_path / "file").touch()
    for path in (str(tmp_path), str(tmp_path / "file")):
        atomic.flush(path)
    assert opened == [(str(tmp_path / "file"), os.O_RDWR)]


@pytest.mark.parametrize("target", ["open", "flush", "replace_folder"])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, target):
    store = CheckpointStore(tmp_path / "s")
    store.save(1, TENSORS, {"n": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_file if target == "open" else checkpoint, target, full, raising=False)
    with pytest.raises(CheckpointError, match="no space left on the disk; checkpoints written before are intact"):
        store.save(2, TENSORS, {"n": 2})
    monkeypatch.undo()
    assert os.listdir(tmp_path / "s") == ["step-0000000001"]
    assert store.load_latest()[0] == 1


def test_a_folder_that_was_being_replaced_is_found(tmp_path):
    write_folder(str(tmp_path / "m"), TENSORS, {"n": 1})
    os.rename(tmp_path / "m", tmp_path / "m.old")
    assert read_folder(str(tmp_path / "m"))[1]["n"] == 1
