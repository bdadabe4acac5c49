"""The experiment with sums in shared memory: it compiles, without atomics, and costs what the findings say."""

import pytest

from tests.conftest import INTERPRETING

if INTERPRETING:
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)
pytest.importorskip("triton")
pytest.importorskip("triton.experimental.gluon")

from triton.experimental.gluon import language as gl

from bench.environment import REPOSITORY
from bench.studies import shared_sums


@pytest.mark.skipif(
    not hasattr(gl.shared_memory_descriptor, "gather"), reason="this Triton gathers from global memory only"
)
def test_shared_memory_takes_no_atomics_and_more_instructions():
    atomic, shared = (
        shared_sums.counted(kernel, 512, 64, 32) for kernel in (shared_sums.by_atomics, shared_sums.in_shared_memory)
    )
    assert atomic.atomics and not shared.atomics and shared.shared_loads and not shared.spilled
    assert shared.per_group > 3 * atomic.per_group
    findings = (REPOSITORY / "reports" / "findings.md").read_text()
    if shared_sums.triton.__version__ == "3.7.1":
        assert f"| {atomic.per_group:.0f} | {shared.per_group:.0f} |" in findings
