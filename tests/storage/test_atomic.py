"""Files that are written through ``complete_file`` are whole or absent, and what stands at their path decides how."""

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest

from sparse_xmc.storage import atomic
from sparse_xmc.storage.atomic import complete_file, make_folder, write_json, write_text
from sparse_xmc.storage.errors import ArtefactError

POSIX = pytest.mark.skipif(os.name == "nt", reason="devices, pipes and links of POSIX")
NOT_ROOT = pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "x"
    write_text(str(path), "old")
    with complete_file(str(path)) as file:
        file.write("new \udcff")
        assert path.read_text() == "old"
    assert path.read_text() == "new \\udcff"
    with pytest.raises(KeyboardInterrupt), complete_file(str(path), "wb") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text().startswith("new") and os.listdir(tmp_path) == ["x"]


def test_permissions_stay(tmp_path):
    path = tmp_path / "x"
    write_text(str(path), "old")
    path.chmod(0o640)
    write_text(str(path), "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@POSIX
@pytest.mark.parametrize("there", [True, False])
def test_links_are_followed_and_stay(tmp_path, there):
    (tmp_path / "real").mkdir()
    target, link, second = tmp_path / "real" / "x", tmp_path / "link", tmp_path / "second"
    if there:
        target.write_text("old")
    link.symlink_to("real/x")
    second.symlink_to(link)
    write_text(str(second), "new")
    assert second.is_symlink() and link.is_symlink() and target.read_text() == "new"
    assert os.listdir(tmp_path / "real") == ["x"]


@POSIX
def test_a_loop_of_links_is_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(ArtefactError, match="could not write"):
        write_text(str(tmp_path / "a"), "x")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@POSIX
def test_a_pipe_is_written_through(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got = []
    reader = threading.Thread(target=lambda: got.append(path.read_text()), daemon=True)
    reader.start()
    write_text(str(path), "through")
    reader.join(30)
    assert got == ["through"] and stat.S_ISFIFO(path.stat().st_mode)


@POSIX
@pytest.mark.parametrize("linked", [False, True])
def test_a_device_stays_one(tmp_path, linked):
    path = "/dev/null"
    if linked:
        path = str(tmp_path / "null")
        os.symlink("/dev/null", path)
    write_text(path, "gone")
    assert stat.S_ISCHR(os.stat(path).st_mode)
    if linked:
        assert os.path.islink(path)


@POSIX
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_descriptors_are_written_through(tmp_path, name, to):
    if not os.path.exists(name):
        pytest.skip(f"no {name} here")
    code = f"from sparse_xmc.storage.atomic import write_text; write_text({name!r}, 'through')"
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = {**os.environ, "PYTHONPATH": root}
    if to == "pipe":
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=120
        )
        assert done.stdout == b"through"
    else:
        with (tmp_path / "out").open("wb") as out:
            subprocess.run([sys.executable, "-c", code], env=environment, stdout=out, check=True, timeout=120)
        assert (tmp_path / "out").read_bytes() == b"through" and os.listdir(tmp_path) == ["out"]


def test_folders_and_places_that_are_not_there_are_errors(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in ("folder", "none/x"):
        with pytest.raises(ArtefactError, match=f"could not write .*{path}: .*; what stood there before is intact"):
            write_text(str(tmp_path / path), "x")
    assert os.listdir(tmp_path) == ["folder"] and os.listdir(tmp_path / "folder") == []


@NOT_ROOT
def test_a_protected_file_is_not_replaced(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(ArtefactError, match="Permission denied"):
        write_text(str(path), "new")
    assert path.read_text() == "old"


def test_numbers_that_json_has_no_words_for_are_not_written(tmp_path):
    path = str(tmp_path / "x.json")
    for number in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(FloatingPointError, match="x.json is not written"):
            write_json(path, {"a": [number]})
    assert not os.path.exists(path)


def test_every_new_folder_is_written_to_disk(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(atomic, "flush", flushed.append)
    make_folder(str(tmp_path / "a" / "b" / "c"))
    assert flushed == [str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")]
    make_folder(str(tmp_path / "a" / "b"))
    assert len(flushed) == 3


def test_a_disk_that_fails_is_told_with_the_place(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"Input/output error: '{tmp_path}'"):
        make_folder(str(tmp_path / "new"))
    with pytest.raises(ArtefactError, match=f"could not write {tmp_path}/x: Input/output error"):
        write_text(str(tmp_path / "x"), "new")
    assert not (tmp_path / "x").exists()
