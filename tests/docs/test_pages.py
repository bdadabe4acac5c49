"""Every Python block of the documentation runs, page by page in one namespace; every command line runs too."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAMS = {"python", "sparse-xmc"}


def _blocks(page: Path, kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == kind]


def _name(page: Path) -> str:
    return page.relative_to(ROOT / "docs").as_posix()


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "python") or _blocks(p, "bash")], ids=_name)
def test_blocks_run_in_order(page, tmp_path, monkeypatch):
    """Python in one namespace and command lines, all in one scratch folder."""
    if "transformers" in page.read_text():
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    namespace = {"__name__": "docs"}
    for kind, block in BLOCK.findall(page.read_text()):
        if kind == "python":
            exec(compile(block, _name(page), "exec"), namespace)
        elif kind == "bash":
            for line in block.splitlines():
                _run(line, page)


def _run(line: str, page: Path) -> None:
    program, *arguments = shlex.split(line, comments=True)
    assert program in PROGRAMS, f"{_name(page)}: {line} is not run by this test"
    command = [sys.executable, *(arguments if program == "python" else ["-m", "sparse_xmc", *arguments])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_every_block_says_of_which_kind_it_is():
    for page in PAGES:
        assert {kind for kind, _ in BLOCK.findall(page.read_text())} <= {"python", "bash", "text", "toml"}, _name(page)
        assert page.read_text().count("```") == 2 * len(BLOCK.findall(page.read_text())), _name(page)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "prune_regrow_" in (tmp_path / "site" / "search" / "search_index.json").read_text()
