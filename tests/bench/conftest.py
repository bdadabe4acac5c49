"""``pytest tests/bench --benchmark-only`` compares with the baselines stored in ``reports/benchmarks``.

They are those of one machine: on another one pytest-benchmark warns, and what counts is the ratio to ``nn.Linear`` in the run.
``--benchmark-save=cpu`` writes new ones.
"""

from typing import Any

import pytest

from bench.environment import REPOSITORY

STORAGE = REPOSITORY / "reports" / "benchmarks"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    if not getattr(option, "benchmark_only", False):
        return
    if option.benchmark_storage == "file://./.benchmarks":
        option.benchmark_storage = STORAGE.as_uri()
    saves = option.benchmark_save or option.benchmark_autosave
    if not option.benchmark_compare and not saves and any(STORAGE.glob("*/*.json")):
        option.benchmark_compare = True


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    for name in ("node", "release"):  # the host's own affairs
        machine_info.pop(name, None)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    for name in ("branch", "project", "author_time"):
        commit_info.pop(name, None)
