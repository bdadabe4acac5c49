"""A launcher that does not see the end of its rank is ended too; one that does is left alone."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparse_xmc.distributed import launcher

RANK = f"import runpy; runpy.run_path({str(Path(launcher.__file__))!r})['end_blocked_launcher'](1.0)"
LAUNCHER = f"""
import subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", {RANK!r}])
SEES and rank.wait()
time.sleep(LASTS)
"""


def launch(sees: bool, lasts: float, **environment: str) -> tuple[int, str]:
    script = LAUNCHER.replace("SEES", str(sees)).replace("LASTS", str(lasts))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_only_a_launcher_that_is_blocked_is_ended():
    status, said = launch(False, 100, TORCHELASTIC_RUN_ID="x")
    assert status == -signal.SIGKILL and said.count("\n") == 1, said
    assert "has not seen for 1 s that its rank ended" in said
    assert launch(True, 3, TORCHELASTIC_RUN_ID="x") == (0, "")
    assert launch(False, 3) == (0, "")
