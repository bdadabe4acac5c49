"""Places where nothing could be written are refused before any work is done for them."""

import os

import pytest

from sparse_xmc.storage.atomic import check_place
from sparse_xmc.storage.errors import ArtefactError


def test_places_that_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("nowhere yet")
    for name in ("file", "new", "link"):
        check_place(str(tmp_path / name), folder=False)
    for name in ("new", "new/below/it", "."):
        check_place(str(tmp_path / name), folder=True)
    check_place(os.devnull, folder=False)
    check_place("new", folder=False)


@pytest.mark.parametrize(
    ("name", "folder", "message"),
    [
        (".", False, "is a folder: name another place"),
        ("file", True, "is a file: name another place"),
        ("no/such/file", False, "no/such is no folder"),
        ("file/below", True, "file is no folder"),
        ("file/below", False, "file is no folder"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, name, folder, message):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match=message):
        check_place(str(tmp_path / name), folder=folder)


@pytest.mark.parametrize("folder", [True, False])
def test_folders_of_others_are_told(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ArtefactError, match=f"no permission to write in {tmp_path}"):
        check_place(str(tmp_path / "new"), folder=folder)
    check_place(os.devnull, folder=False)  # a device may be written where its folder may not
