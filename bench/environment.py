"""What a figure has to carry with it: commit, versions, hardware."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent


def _git(*arguments: str) -> str:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    return ""


@cache
def commit() -> str:
    """Hash of the checked-out commit, or "unknown" outside a repository (a suite script may pass it on)."""
    return os.environ.get("SPARSE_XMC_COMMIT") or _git("rev-parse", "HEAD") or "unknown"


@cache
def dirty() -> bool:
    """Whether package or benchmarks differ from the commit. Without git nothing vouches for them, so: True."""
    if "SPARSE_XMC_COMMIT" in os.environ:
        return os.environ.get("SPARSE_XMC_DIRTY", "0") == "1"
    return commit() == "unknown" or bool(_git("status", "--porcelain", "--", "sparse_xmc", "bench"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory_bytes() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def available_bytes() -> int | None:
    """Memory that a new process can take without swapping, or None where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) * 1024
    return None


def describe(device: str) -> dict[str, Any]:
    """Columns of every row: where and with what the figure was measured."""
    out: dict[str, Any] = {
        "commit": commit(),
        "dirty": dirty(),
        "python": platform.python_version(),
        "os": platform.platform(aliased=True, terse=True),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory_bytes(),
        **{package: _version(package) for package in ("torch", "triton", "numba", "numpy", "scipy")},
        "command": command(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        out |= {
            "gpu": properties.name,
            "gpu_bytes": properties.total_memory,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
        if torch.version.hip:
            out["hip"] = torch.version.hip
    return out


def command() -> str:
    """The command line, in the form to repeat it from the repository's root; other folders by their last name."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = module.name.removesuffix(".__main__") if module else "bench"
    return " ".join([f"python -m {name}", *map(_portable, sys.argv[1:])])


def _portable(argument: str) -> str:
    if not os.path.isabs(argument):
        return argument
    inside = os.path.relpath(argument, REPOSITORY)
    return os.path.basename(argument.rstrip("/")) if inside.startswith(os.pardir) else inside


@cache
def _driver() -> str | None:
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    return None
