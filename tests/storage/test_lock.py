"""One program at a time in a folder; a lock goes with the process that held it."""

import os
import signal
import subprocess
import sys

import pytest

from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.lock import FolderLock

HOLDER = """
import sys
from sparse_xmc.storage.lock import FolderLock
with FolderLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_locks_of_one_process(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with FolderLock(str(tmp_path)) as lock:
        lock.acquire()  # again: nothing
        for path in (tmp_path, tmp_path / "link", tmp_path / "."):
            with pytest.raises(ArtefactError, match="is in use by another run"), FolderLock(str(path)):
                pass
    with FolderLock(str(tmp_path)):
        pass
    assert os.listdir(tmp_path) == ["link"]


def test_a_folder_that_comes_later(tmp_path):
    with FolderLock(str(tmp_path / "new")) as lock:
        (tmp_path / "new").mkdir()
        with FolderLock(str(tmp_path / "new")), pytest.raises(ArtefactError):
            lock.acquire()
        lock.acquire()
        with pytest.raises(ArtefactError), FolderLock(str(tmp_path / "new")):
            pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_a_killed_process_leaves_no_lock(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ArtefactError, match="is in use by another run"), FolderLock(str(tmp_path)):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with FolderLock(str(tmp_path)):
        pass
