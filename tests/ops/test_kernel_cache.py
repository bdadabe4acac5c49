"""Compiled CPU kernels on disk: reused as long as no source of theirs changed."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="about the CPU kernels")

_MODULE = """
from sparse_xmc.kernels.compiled import kernel

@kernel
def double(x):
    return 2 * x
"""


def test_a_change_in_any_source_compiles_again(tmp_path, monkeypatch):
    from sparse_xmc.kernels import compiled

    path = tmp_path / "kernels.py"
    path.write_text(_MODULE)

    def cache_hits(digest):
        monkeypatch.setattr(compiled, "_sources", lambda folder: digest)
        spec = importlib.util.spec_from_file_location("kernels", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.double(1.5) == 3.0
        return sum(module.double.stats.cache_hits.values())

    assert [cache_hits(digest) for digest in ("old", "old", "new", "new")] == [0, 1, 0, 1]


def test_the_digest_covers_the_files_that_kernels_inline(tmp_path, monkeypatch):
    from sparse_xmc.kernels import compiled

    for folder in ("shared", "own"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "_simd.py").write_text("b")
    monkeypatch.setattr(compiled, "__file__", str(tmp_path / "shared" / "compiled.py"))
    digests = [compiled._sources.__wrapped__(str(tmp_path / "own"))]
    for folder in ("shared", "own"):
        (tmp_path / folder / "_simd.py").write_text("c")
        digests.append(compiled._sources.__wrapped__(str(tmp_path / "own")))
    assert len(set(digests)) == 3


_USE = """
import torch
from sparse_xmc.kernels import compiled
import numba.core.caching as caching

{change}

@compiled.kernel
def double(x):
    return 2 * x

@compiled.kernel
def triple(x):
    return 3 * x

print(double(1.5), triple(1.0))
"""
_NO_PLACE = "caching.CacheImpl._locator_classes = []"
_FULL = """
def full(*args):
    raise OSError(28, "No space left on device")
caching.IndexDataCacheFile.save = full
caching.IndexDataCacheFile.load = full
"""


@pytest.mark.parametrize("change", [_NO_PLACE, _FULL], ids=["no folder", "full disk"])
def test_without_a_cache_kernels_work_and_one_line_says_so(tmp_path, change):
    (tmp_path / "use.py").write_text(_USE.format(change=change))
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    environment = {**os.environ, "PYTHONPATH": root, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(tmp_path / "use.py")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "3.0 3.0\n", done.stderr
    assert done.stderr.count("\n") == 1 and "set NUMBA_CACHE_DIR to a folder that can be written" in done.stderr
