"""Runs the tasks of a suite one after the other, each in a fresh process, and appends their rows. Resumes a run."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import environment
from bench.rows import RowFile, job_key, unfinished_run
from bench.worker import Task, execute

Print = Callable[[str], None]


def _print(line: str) -> None:
    print(line, flush=True)


def _child(connection: Connection, task: Task) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    execute(task, connection.send)
    connection.send(None)


def _context() -> Any:
    """Fresh processes that need not import torch again: a server without threads or devices that forks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.worker", "bench.providers"])
    return context


def run_task(task: Task, timeout: float) -> Iterator[dict[str, Any]]:
    """Rows of a task as they come: one per provider, whatever happens to the process."""
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, task))
    process.start()
    sender.close()
    lost = list(task.providers or ("roof",))
    deadline = time.monotonic() + timeout
    finished = timed_out = False
    try:
        while not finished:
            if not receiver.poll(max(0.0, deadline - time.monotonic())):
                timed_out = True
                break
            row = receiver.recv()
            finished = row is None
            if row is not None:
                lost.remove(row["provider"])
                yield row
    except EOFError:
        finished = True
    finally:
        receiver.close()
        process.join(10 if finished else 0)
        if process.is_alive():
            process.kill()
            process.join()
    for name in lost:
        yield {"provider": name, **_death(process.exitcode, timed_out, timeout)}


def _death(exitcode: int | None, timed_out: bool, timeout: float) -> dict[str, Any]:
    if timed_out:
        return {"status": "error", "reason": f"took longer than {timeout:g} s"}
    if exitcode == -9:
        return {"status": "oom", "reason": "the process was killed (signal 9), as the kernel does when memory runs out"}
    return {"status": "error", "reason": f"the process died with exit code {exitcode}"}


def run_suite(
    suite: str, tasks: Sequence[Task], folder: Path, *, fresh: bool, timeout: float, show: Print = _print
) -> str:
    """Measures what an unfinished run of the suite at this commit still lacks, or all. Returns the run's name."""
    file = RowFile(folder)
    rows = file.read()
    commit = environment.commit()
    run = None if fresh else unfinished_run(rows, suite, commit)
    described = environment.describe(tasks[0].point.device)
    if run is None:
        run = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{commit[:8]}"
        file.append(
            {"kind": "begin", "run": run, "suite": suite, "tasks": len(tasks), "timestamp": _now(), **described}
        )
        done = set()
    else:
        done = {job_key(row) for row in rows if row.get("run") == run}
        show(f"resuming run {run}")
    started = time.monotonic()
    for number, task in enumerate(tasks, start=1):
        missing = tuple(name for name in (task.providers or ("roof",)) if _key(task, name) not in done)
        if not missing:
            continue
        remaining = Task(task.kind, missing, task.point, task.budget, task.seed, task.memory_limit)
        for row in run_task(remaining, timeout):
            common = {"kind": task.kind, "run": run, "suite": suite, "seed": task.seed, "timestamp": _now()}
            file.append({**common, **task.point.as_dict(), **row, **described})
            show(f"[{number}/{len(tasks)} {time.monotonic() - started:4.0f} s] {task.point}  {_figure(task.kind, row)}")
    file.append({"kind": "end", "run": run, "suite": suite, "timestamp": _now()})
    return run


def _key(task: Task, provider: str) -> tuple[Any, ...]:
    return job_key({"kind": task.kind, "provider": provider, **task.point.as_dict()})


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _figure(kind: str, row: dict[str, Any]) -> str:
    name = f"{row['provider']:<20}"
    if row["status"] != "ok":
        return f"{name} {row['status']}: {row['reason']}"
    if kind == "time":
        return f"{name} {row['p50_ms']:10.3f} ms  ({row['p20_ms']:.3f} to {row['p80_ms']:.3f}, n={row['samples']})"
    if kind == "memory":
        return f"{name} {row['peak_bytes'] / 2**20:10.1f} MiB above {row['persistent_bytes'] / 2**20:.1f} MiB"
    return f"copy {row['bandwidth'] / 1e9:.1f} GB/s, matrix product {row['rate'] / 1e9:.0f} GFLOP/s"
