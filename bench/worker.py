"""What runs in a fresh process: the measurement of one task. Results travel back one by one through a pipe."""

from __future__ import annotations

import gc
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from bench import energy, memory
from bench.check import UnequalWork, Wrong, check_provider
from bench.environment import available_bytes
from bench.measure import Budget, copy_bandwidth, interleaved, matrix_rate, warm_up
from bench.point import DTYPES, WORK, Point
from bench.problem import Problem
from bench.provider import Case, Provider, Unsupported
from bench.providers import get_provider
from bench.roofline import floor

Report = Callable[[dict[str, Any]], None]
_HEADROOM = 1 << 30  # left free when deciding whether something fits


@dataclass(frozen=True)
class Task:
    """Work for one process. kind: "time" (providers interleaved), "memory" (one provider) or "roof"."""

    kind: str
    providers: tuple[str, ...]
    point: Point
    budget: Budget = Budget()
    seed: int = 0
    memory_limit: int | None = None


class _Refused(Exception):
    """A provider will not be measured; carries status and reason of its row."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def execute(task: Task, report: Report) -> None:
    """Measures a task; calls ``report`` once per provider, with status and reason where there is no figure."""
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    if task.kind == "roof":
        report(_roof(task))
    elif task.kind == "memory":
        memory.return_memory_at_once()
        for name in task.providers:
            report({"provider": name, **_guarded(partial(_memory_row, task, name))})
    else:
        _time_rows(task, report)


def free_bytes(device: str) -> int | None:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    return available_bytes()


def _guarded(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The columns of a measurement, or status and reason of its failure."""
    try:
        return {"status": "ok", "reason": None, **measure()}
    except _Refused as refusal:
        return {"status": refusal.status, "reason": refusal.reason}
    except Unsupported as error:
        return {"status": "unsupported", "reason": str(error)}
    except NotImplementedError as error:
        return {"status": "unsupported", "reason": _one_line(error) or "not implemented"}
    except (Wrong, UnequalWork) as error:
        return {"status": "error", "reason": f"{type(error).__name__}: {error}"}
    except Exception as error:  # a failing provider is a row, never a crash
        if _is_out_of_memory(error):
            return {"status": "oom", "reason": _one_line(error)}
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {"status": "error", "reason": f"{_one_line(error)} ({where.name}, line {where.lineno})"}


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _admit(task: Task, provider: Provider) -> int:
    """Passes a provider that supports the point, fits, and is right; returns its predicted bytes."""
    point = task.point
    if point.mode not in provider.modes:
        raise _Refused("unsupported", f"{provider.name} has no {point.mode}")
    reason = provider.unsupported(point)
    if reason is not None:
        raise _Refused("unsupported", reason)
    predicted, limit = provider.predicted_bytes(point), task.memory_limit
    if limit is None:
        free = free_bytes(point.device)
        limit = None if free is None else free - _HEADROOM
    if limit is not None and predicted > limit:
        raise _Refused(
            "oom", f"predicted: needs about {predicted / 2**30:.1f} GiB where {limit / 2**30:.1f} are allowed"
        )
    check_provider(provider, point)
    return predicted


def _admitted(task: Task, name: str) -> dict[str, Any]:
    return {"predicted": _admit(task, get_provider(name))}


def _counts(task: Task, case: Case) -> dict[str, Any]:
    flops, floor_bytes = floor(task.point, case.weights)
    return {
        "checked": True,
        "work": sorted(WORK[task.point.mode]),
        "flops": flops,
        "floor_bytes": floor_bytes,
        "persistent_bytes": case.weights.num_bytes(),
    }


def _memory_row(task: Task, name: str) -> dict[str, Any]:
    provider = get_provider(name)
    predicted = _admit(task, provider)
    case = provider.build(task.point, Problem(task.point, task.seed))
    if task.point.device == "cuda":
        case.run()  # a search of configurations holds buffers of its own
    gc.collect()
    peak = memory.peak_growth(case.run, task.point.device)
    return {**_counts(task, case), "peak_bytes": peak, "predicted_bytes": predicted}


def _time_rows(task: Task, report: Report) -> None:
    admitted: dict[str, int] = {}
    for name in task.providers:
        columns = _guarded(partial(_admitted, task, name))
        if columns["status"] == "ok":
            admitted[name] = columns["predicted"]
        else:
            report({"provider": name, **columns})
    problem = Problem(task.point, task.seed)
    for together in _that_fit(admitted, free_bytes(task.point.device)):
        _time_together(task, together, problem, report)
        gc.collect()


def _that_fit(predicted: dict[str, int], free: int | None) -> Iterator[list[str]]:
    """Splits providers into groups that fit in half of the free memory; a larger one stands alone."""
    room = float("inf") if free is None else free / 2
    group: list[str] = []
    used = 0
    for name, size in sorted(predicted.items(), key=lambda item: item[1]):
        if group and used + size > room:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def _time_together(task: Task, names: Iterable[str], problem: Problem, report: Report) -> None:
    cases: dict[str, Case] = {}
    for name in names:
        columns = _guarded(partial(_prepared, task, name, problem))
        if columns["status"] == "ok":
            cases[name] = columns["case"]
        else:
            report({"provider": name, **columns})
    if not cases:
        return
    timed = _guarded(
        lambda: {"timings": interleaved({n: c.run for n, c in cases.items()}, task.point.device, task.budget)}
    )
    meter = energy.meter(task.point.device) if task.budget.energy_seconds else None
    for name, case in cases.items():
        if timed["status"] == "ok":
            columns = {"status": "ok", "reason": None, **_counts(task, case), **asdict(timed["timings"][name])}
            if meter is not None:
                columns["joules"] = energy.joules_per_call(
                    case.run, task.point.device, meter, task.budget.energy_seconds
                )
        else:
            columns = timed
        report({"provider": name, "interleaved_with": sorted(cases), **columns})


def _prepared(task: Task, name: str, problem: Problem) -> dict[str, Any]:
    """A case that has been warmed up: compilation, first allocations and failures are behind it."""
    case = get_provider(name).build(task.point, problem)
    warm_up(case.run, task.budget.warmup_seconds, task.point.device)
    return {"case": case}


def _roof(task: Task) -> dict[str, Any]:
    """The machine's measured limits, for the dtype of the point."""
    device, dtype = task.point.device, DTYPES[task.point.dtype]
    return {"status": "ok", "reason": None, "provider": "roof"} | {
        "bandwidth": copy_bandwidth(device),
        "rate": matrix_rate(device, dtype),
    }
