"""The search for unguarded reads before writes finds what it should, in written PTX and in that of small kernels."""

import pytest

from tests.conftest import INTERPRETING

if INTERPRETING:
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)
pytest.importorskip("triton")

import torch
import triton
import triton.language as tl

from bench import offline
from bench.ptx_races import races

LOAD, STORE = "@%p1 ld.global.b32 { %r1 }, [ %rd1 + 0 ];", "@%p2 st.global.b32 [ %rd1 + 0 ], { %r2 };"
BARRIER = "bar.sync \t0;"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ([LOAD, STORE], 1),
        ([LOAD, BARRIER, STORE], 0),
        ([LOAD, STORE.replace("%p2", "%p1")], 0),
        ([LOAD, STORE.replace("rd1", "rd2")], 0),
        ([LOAD, STORE.replace("+ 0", "+ 4")], 0),
        ([LOAD.replace("@%p1 ", ""), STORE], 1),
        (["ld.global.v2.b32 { %r1, %r2 }, [ %rd1 ];", STORE], 1),
        # only one of two ways to the store has a barrier
        ([LOAD, "@%p3 bra $L__BB0_1;", BARRIER, "$L__BB0_1:", STORE], 1),
        ([LOAD, BARRIER, "@%p3 bra $L__BB0_1;", "add.s32 %r3, %r3, 1;", "$L__BB0_1:", STORE], 0),
        # from one round of a loop into the next
        (["$L__BB0_1:", STORE, BARRIER, LOAD, "@%p3 bra $L__BB0_1;"], 1),
        (["$L__BB0_1:", STORE, LOAD, BARRIER, "@%p3 bra $L__BB0_1;"], 0),
        ([LOAD, "bra.uni $L__BB0_2;", "$L__BB0_1:", STORE, "$L__BB0_2:"], 0),
        ([LOAD, "ret;", "$L__BB0_1:", STORE], 0),
    ],
)
def test_ways_from_a_load_to_a_store(code: list[str], expected: int) -> None:
    assert len(races("\n".join([".visible .entry kernel()", "{", *code, "ret;", "}"]))) == expected


@triton.jit
def _scale_by_own_sum(values_ptr, total_ptr, N: tl.constexpr, WAIT: tl.constexpr):
    values = tl.load(values_ptr + tl.arange(0, N))
    label = tl.zeros((1,), tl.int32)
    total = tl.load(total_ptr + label)
    if WAIT:
        tl.debug_barrier()
    total = 0.5 * total + 1.0
    tl.store(total_ptr + label, total)
    tl.store(values_ptr + tl.arange(0, N), values / total)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_value_that_all_warps_load_and_one_stores(target: str, wait: bool) -> None:
    values = torch.empty(1024, device="meta")
    launch = offline.recorded(lambda: _scale_by_own_sum[(1,)](values, torch.empty(1, device="meta"), 1024, wait))[0]
    found = offline.facts(offline.compile_for(launch, offline.TARGETS[target]), offline.TARGETS[target])
    wrong = offline.problems(found, offline.TARGETS[target])
    assert len(wrong) == (0 if wait else 1), wrong
    assert wait or "test_ptx_races.py" in wrong[0]
