"""Every Triton kernel compiles for each target, without spills, within shared memory, on tensor cores where meant."""

import pytest

from tests.conftest import INTERPRETING

if INTERPRETING:
    pytest.skip("interpreted kernels can't be compiled", allow_module_level=True)
pytest.importorskip("triton")

from bench import offline, static_cases

pytestmark = pytest.mark.compile_gate


@pytest.mark.parametrize("target", offline.TARGETS)
@pytest.mark.parametrize("name", static_cases.cases())
def test_compiles(name: str, target: str) -> None:
    case = static_cases.cases()[name]
    launches = offline.recorded(case.launch)
    assert launches, f"{name} launches no kernel"
    for launch in launches:
        found = offline.facts(offline.compile_for(launch, offline.TARGETS[target]), offline.TARGETS[target])
        wrong = offline.problems(found, offline.TARGETS[target], wgmma=case.wgmma)
        assert not wrong, f"{launch.kernel.__name__} for {target}: {'; '.join(wrong)}\n{found}"
