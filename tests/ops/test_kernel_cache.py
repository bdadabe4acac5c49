"""Compiled CPU kernels on disk: reused as long as no source of theirs changed."""

import importlib.util

import pytest

from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="about the CPU kernels")

_MODULE = """
from sparse_xmc.ops.cpu_kernels._numeric import kernel

@kernel
def double(x):
    return 2 * x
"""


def test_a_change_in_any_source_compiles_again(tmp_path, monkeypatch):
    from sparse_xmc.ops.cpu_kernels import _numeric

    path = tmp_path / "kernels.py"
    path.write_text(_MODULE)

    def cache_hits(digest):
        monkeypatch.setattr(_numeric, "_sources", lambda: digest)
        spec = importlib.util.spec_from_file_location("kernels", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.double(1.5) == 3.0
        return sum(module.double.stats.cache_hits.values())

    assert [cache_hits(digest) for digest in ("old", "old", "new", "new")] == [0, 1, 0, 1]


def test_the_digest_covers_the_files_that_kernels_inline(tmp_path, monkeypatch):
    from sparse_xmc.ops.cpu_kernels import _numeric

    for name, text in (("_numeric.py", "a"), ("_simd.py", "b")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(_numeric, "__file__", str(tmp_path / "_numeric.py"))
    before = _numeric._sources.__wrapped__()
    (tmp_path / "_simd.py").write_text("c")
    assert _numeric._sources.__wrapped__() != before
