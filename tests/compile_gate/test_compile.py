"""Every Triton kernel compiles for each target, without spills, within shared memory, on tensor cores where meant."""

import pytest

from tests.conftest import INTERPRETING

if INTERPRETING:
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)
pytest.importorskip("triton")

import triton

from bench import offline, static_analysis, static_cases
from bench.environment import REPOSITORY

pytestmark = pytest.mark.compile_gate
BASELINE = static_analysis.read(REPOSITORY / "reports")
COMPARED = [name for name in static_cases.cases() if name in {row["case"] for row in BASELINE["rows"]}]


@pytest.mark.parametrize("target", offline.TARGETS)
@pytest.mark.parametrize("name", static_cases.cases())
def test_compiles(name: str, target: str) -> None:
    case = static_cases.cases()[name]
    launches = offline.recorded(case.launch, offline.TARGETS[target])
    assert launches, f"{name} launches no kernel"
    for launch in launches:
        found = offline.facts(offline.compile_for(launch, offline.TARGETS[target]), offline.TARGETS[target])
        wrong = offline.problems(found, offline.TARGETS[target], wgmma=case.wgmma)
        assert not wrong, f"{launch.kernel.__name__} for {target}: {'; '.join(wrong)}\n{found}"


@pytest.mark.skipif(triton.__version__ != BASELINE["triton"], reason="the baseline is of another Triton version")
@pytest.mark.parametrize("name", COMPARED)
def test_no_worse_than_the_baseline(name: str) -> None:
    """If this is deliberate, write the baseline anew: ``python -m bench static --out reports``."""
    rows = [row for row in BASELINE["rows"] if (row["case"], row["target"]) == (name, "sm_90")]
    before = {row["kernel"]: row for row in rows if "error" not in row}
    for row in static_analysis.rows_of(name, "sm_90"):
        if row["kernel"] in before:
            worse = static_analysis.regressions(row, before[row["kernel"]])
            assert not worse, f"{row['kernel']}: {'; '.join(worse)}"


def test_gate_rejects_what_it_should() -> None:
    """A gate that can't fail guards nothing."""
    good = offline.Facts(64, 0, 1024, 4, 0.5, 16, {"wgmma": 4}, tensor_dots=True)
    hopper = offline.TARGETS["sm_90"]
    assert not offline.problems(good, hopper)
    assert "spills" in offline.problems(good._replace(spilled=64), hopper)[0]
    assert "shared memory" in offline.problems(good._replace(shared=300_000), hopper)[0]
    assert "wgmma" in offline.problems(good._replace(instructions={"mma": 4}), hopper)[0]
    assert not offline.problems(good._replace(instructions={"mma": 4}), hopper, wgmma=False)
    row = {"registers": 64, "shared": 0, "load_bytes": 16, "tensor_core": 4, "atomics": 0, "loop": 100, "executed": 500}
    assert not static_analysis.regressions({**row, "registers": 70, "loop": 105}, row)
    for name, value in (
        ("registers", 128),
        ("shared", 8),
        ("load_bytes", 2),
        ("tensor_core", 0),
        ("loop", 150),
        ("executed", 520),
    ):
        assert static_analysis.regressions({**row, name: value}, row)[0].startswith(name)
