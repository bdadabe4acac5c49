"""What is built holds all of the package and nothing else, and describes itself wherever it is read."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bench", "docs", "examples", "reports", "sparse_xmc", "tests")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*cache", "cache", "build", "dist", ".venv", ".git")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A source distribution and a wheel, made from a copy of the repository."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "copy", ignore=IGNORED)
    (folder / "copy" / "sparse_xmc" / "__pycache__").mkdir()
    (folder / "copy" / "sparse_xmc" / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"")
    code = "from setuptools import build_meta as b; b.build_sdist('out'); b.build_wheel('out')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "copy", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (sdist,), (wheel,) = (folder / "copy" / "out").glob("*.tar.gz"), (folder / "copy" / "out").glob("*.whl")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    return names, contents


def files(folder):
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts) and path.suffix != ".pyc"
    }


def test_the_wheel_is_the_package_and_nothing_else(built):
    code = {name for name in built[1] if not name.split("/")[0].endswith(".dist-info")}
    assert code == files("sparse_xmc")
    assert "sparse_xmc/py.typed" in code


def test_the_source_distribution_is_complete_and_clean(built):
    names = built[0]
    for folder in FOLDERS:
        assert files(folder) <= names, folder
    own = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "constraints.txt", "pyproject.toml")
    assert {*own, "setup.py", "MANIFEST.in"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".nbi", ".nbc"))]


def metadata(built):
    (name,) = (name for name in built[1] if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(built[1][name])


def test_metadata(built):
    document = metadata(built)
    assert document["License-Expression"] == "Apache-2.0" and document["Requires-Python"] == ">=3.10"
    assert document["Keywords"] and len(document.get_all("Classifier")) > 5
    assert {"train", "parquet"} <= set(document.get_all("Provides-Extra"))
    (scripts,) = (content for name, content in built[1].items() if name.endswith("entry_points.txt"))
    assert b"sparse-xmc = sparse_xmc.__main__:main" in scripts


def test_the_description_needs_no_repository(built):
    document = metadata(built)
    text = document.get_payload(decode=True).decode()
    assert document["Description-Content-Type"].startswith("text/markdown")
    assert text.startswith((ROOT / "README.md").read_text(encoding="utf-8").partition("\n")[0])
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert all(target.startswith(("https://", "http://", "#")) for target in targets), targets


def test_links_become_text():
    sys.path.insert(0, str(ROOT))
    try:
        from setup import outside_the_repository
    finally:
        sys.path.remove(str(ROOT))
    assert outside_the_repository(
        "![figure](a/b.png)\n\nsee [how](docs/x.md), [reports/](reports/README.md), [w](https://w.org)"
    ) == ("see how (`docs/x.md`), `reports/README.md`, [w](https://w.org)")
