"""The same ``torchrun`` line on two and three hosts: metrics, traffic, cut links, dead hosts, other numbers of hosts."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

from tests.distributed.hosts import Host, hosts, missing
from tests.distributed.processes import FIRST_USE, ROOT
from tests.distributed.test_agreement import SMALL, write_rows

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"no right to make namespaces: {missing()}")
_LONGEST = 300  # seconds of a job whose kernels may still have to be compiled, twice at once
SILENT = re.compile(r"sparse_xmc: rank \d of \d: .* (given no sign of life|not answered) for 4 s: .*link.* is cut")


class Job:
    """One command on several hosts, started by the same line on each."""

    def __init__(self, hosts: list[Host], folder: Path, command: list[str]) -> None:
        launcher = ["-m", "torch.distributed.run", "--nnodes", str(len(hosts)), "--nproc-per-node", "1"]
        launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "host0:29500"]
        self.logs = [folder / f"{len(hosts)} {host.name}" for host in hosts]
        self.processes = [host.start([*launcher, *command], log) for host, log in zip(hosts, self.logs, strict=True)]

    def wait_for(self, found: Callable[[], bool]) -> None:
        end = time.monotonic() + _LONGEST
        while not found():
            assert self.processes[0].poll() is None and time.monotonic() < end, self.logs[0].read_text()
            time.sleep(0.05)

    def check_silence(self, first: int = 0) -> None:
        """Every process ends, with one line of each rank from ``first`` on."""
        end = time.monotonic() + 60
        for process, log in zip(self.processes[first:], self.logs[first:], strict=True):
            assert process.wait(max(1, end - time.monotonic())) != 0
            outcomes = [line for line in log.read_text().splitlines() if line.startswith("sparse_xmc: ")]
            outcomes = [line for line in outcomes if FIRST_USE not in line]
            assert len(outcomes) == 1 and SILENT.fullmatch(outcomes[0]), log.read_text()

    def result(self) -> str:
        """What the first host wrote, once all have ended well."""
        assert [process.wait(_LONGEST) for process in self.processes] == [0] * len(self.logs), self.logs[0].read_text()
        return self.logs[0].read_text()


def train(folder: Path, name: str, *more: str) -> list[str]:
    data = str(folder / "train.jsonl")
    return ["-m", "sparse_xmc", "train", "--train", data, *SMALL, "--out", str(folder / name), *more]


def test_cut_links_and_dead_hosts_end_the_others_and_another_number_of_hosts_goes_on(tmp_path):
    write_rows(tmp_path / "train.jsonl")
    command = train(tmp_path, "run", "--epochs", "1000000", "--checkpoint-seconds", "0", "--timeout", "4")
    with hosts(2, tmp_path) as two:
        job = Job(two, tmp_path, command)
        job.wait_for(lambda: any(tmp_path.glob("run/checkpoints/step-*[1-9]")))
        two[1].cut()
        job.check_silence()
    with hosts(3, tmp_path) as three:
        job = Job(three, tmp_path, command)
        job.wait_for(lambda: "resumed at step" in job.logs[0].read_text())
        three[0].cut()  # a host without power says nothing either
        three[0].kill()
        job.check_silence(1)


def test_hosts_give_the_metrics_of_one(tmp_path):
    write_rows(tmp_path / "train.jsonl")
    more = ["--epochs", "20", "--test", str(tmp_path / "train.jsonl")]
    subprocess.run([sys.executable, *train(tmp_path, "one", *more)], cwd=ROOT, check=True, capture_output=True)
    with hosts(2, tmp_path) as two:
        Job(two, tmp_path, train(tmp_path, "two", *more)).result()
    one, two_hosts = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one["P@1"] > 90
    for name in ("P@1", "P@3", "P@5", "PSP@1"):
        assert two_hosts[name] == pytest.approx(one[name], abs=1.5), name


def test_traffic_between_hosts_is_that_of_the_formula(tmp_path):
    measure = [str(ROOT / "examples" / "measure_traffic.py"), "--interface", "eth0", "--labels", "500", "--fan-in", "8"]
    with hosts(2, tmp_path) as two:
        table = Job(two, tmp_path, measure).result()
    _, ranks, measured, formula, share, *_ = table.split("|")
    assert ranks.strip() == "2" and 1 <= float(share) < 1.1, (measured, formula)
