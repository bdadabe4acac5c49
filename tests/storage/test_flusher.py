"""Files that are written to disk from a thread, while more is written."""

import threading

import pytest
import torch

from sparse_xmc.storage import atomic, checkpoint, tensor_file
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.flusher import Flusher


def test_the_end_waits_for_what_was_begun(monkeypatch):
    flushed, proceed = [], threading.Event()

    def flush(path):
        proceed.wait(60)
        flushed.append(path)

    monkeypatch.setattr(atomic, "flush", flush)
    with Flusher() as flusher:
        for path in ("a", "b", "b", "a"):  # what waits anyway is not flushed twice
            flusher.begin(path)
        proceed.set()
        flusher.finish()
        assert flushed[:2] == ["a", "b"] and len(flushed) <= 3
        flusher.begin("c")
        flusher.finish()
        assert flushed[-1] == "c"
    assert not [thread for thread in threading.enumerate() if "flusher" in thread.name]


def test_a_failure_of_the_disk_is_told_at_the_end(monkeypatch):
    def flush(path):
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(atomic, "flush", flush)
    with Flusher() as flusher:
        flusher.begin("a")
        with pytest.raises(OSError, match="Input/output error"):
            flusher.finish()


def test_an_end_before_the_end_waits_for_nothing_more(monkeypatch):
    begun, proceed, flushed = threading.Event(), threading.Event(), []

    def flush(path):
        flushed.append(path)
        begun.set()
        proceed.wait(60)

    monkeypatch.setattr(atomic, "flush", flush)
    with pytest.raises(KeyError), Flusher() as flusher:
        flusher.begin("a")
        begun.wait(60)
        flusher.begin("b")
        threading.Timer(0.05, proceed.set).start()
        raise KeyError
    assert flushed == ["a"]


@pytest.mark.parametrize("spoilt", [False, True], ids=["well", "a failing disk"])
def test_large_files_go_to_the_disk_while_they_are_written(tmp_path, monkeypatch, spoilt):
    """Each part as it is written, and each file once more at its end; what fails then leaves no folder behind."""
    flushed = []
    monkeypatch.setattr(tensor_file, "_FLUSHED_BYTES", 1000)
    monkeypatch.setattr(tensor_file, "_PIECE_BYTES", 1000)
    begin = Flusher.begin
    monkeypatch.setattr(Flusher, "begin", lambda self, path: (flushed.append(path), begin(self, path)))
    if spoilt:

        def fail(path):
            raise OSError(5, "Input/output error", path)

        monkeypatch.setattr(atomic, "flush", fail)
    tensors = {"model": {"weight": torch.zeros(1024, dtype=torch.float32)}}
    monkeypatch.setattr(checkpoint, "make_folder", lambda path: (tmp_path / "c.partial").mkdir())
    if spoilt:
        with pytest.raises(ArtefactError, match="checkpoints written before are intact"):
            checkpoint.write_folder(str(tmp_path / "c"), tensors, {"n": 1})
        assert not list(tmp_path.iterdir())
        return
    checkpoint.write_folder(str(tmp_path / "c"), tensors, {"n": 1})
    names = [path.rpartition("/")[2] for path in flushed]
    assert names[:3] == ["model.safetensors"] * 3 and names.count("model.safetensors") == 5
    assert checkpoint.read_folder(str(tmp_path / "c"))[0]["model"]["weight"].shape == (1024,)
