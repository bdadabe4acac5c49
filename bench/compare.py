"""Two measurements of the same jobs side by side: two folders of rows, or two commits measured in alternation."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.environment import REPOSITORY
from bench.rows import Row, RowFile, job_key, newest


class NothingToCompare(ValueError):
    """The two sides share no job with a checked time."""


def _times(folder: Path) -> dict[tuple[object, ...], Row]:
    if not (folder / "rows.jsonl").exists():
        raise ValueError(f"{folder} holds no rows.jsonl")
    rows = newest(RowFile(folder).read())
    return {job_key(r): r for r in rows if r["kind"] == "time" and r["status"] == "ok" and r.get("checked")}


def _line(job: tuple[object, ...], ratios: Sequence[float], low: float, high: float) -> str:
    _, _, _, provider, *point = job
    where = " ".join(
        f"{name}={value}" for name, value in zip(("", "L", "D", "K", "G", "B"), point, strict=False) if name
    )
    return f"{point[0]:<16}{provider:<26}{where:<44} {statistics.median(ratios):6.3f}  [{low:.3f}, {high:.3f}]"


def folders(a: Path, b: Path) -> list[str]:
    """Median of ``a`` over that of ``b`` for each job of both, with the ratios of their outer quantiles.

    Raises:
        ValueError: a folder holds no rows, or no job is in both.
    """
    before, after = _times(a), _times(b)
    shared = [job for job in before if job in after]
    if not shared:
        raise NothingToCompare(f"{a} and {b} share no timed job")
    lines = []
    for job in shared:
        x, y = before[job], after[job]
        lines.append(_line(job, [x["p50_ms"] / y["p50_ms"]], x["p20_ms"] / y["p80_ms"], x["p80_ms"] / y["p20_ms"]))
    return lines


def _measure(tree: Path, out: Path, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "bench", "run", "--fresh", "--out", str(out), *arguments]
    with subprocess.Popen(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()  # which ends its own processes
            raise
    if process.returncode:
        raise ValueError(f"{' '.join(command)} in {tree}: {said.strip()}")


@contextlib.contextmanager
def _checked_out(names: Sequence[str], scratch: Path) -> Iterator[dict[str, Path]]:
    """Work trees of commits, removed at the end, however it comes."""
    with contextlib.ExitStack() as at_the_end:
        trees = {}
        for name in names:
            trees[name] = tree = scratch / f"tree-{len(trees)}"
            at_the_end.callback(_git, "worktree", "remove", "--force", str(tree))
            done = _git("worktree", "add", "-q", "--detach", str(tree), name)
            if done.returncode:
                raise ValueError(f"cannot check out {name!r}: {done.stderr.strip()}")
        yield trees


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)


def commits(a: str, b: str, rounds: int, arguments: Sequence[str]) -> list[str]:
    """As ``folders``, of two commits that are measured in alternation: paired ratios, their median and their range.

    Args:
        rounds: how often each is measured; pairs are of neighbouring measurements, and the one that begins alternates.
        arguments: of ``python -m bench run``, as both commits know them.

    Raises:
        ValueError: a commit is unknown, its benchmark fails, or no job is in both.
    """
    with tempfile.TemporaryDirectory() as scratch, _checked_out((a, b), Path(scratch)) as trees:
        return _alternate(a, b, trees, Path(scratch), rounds, arguments)


def _alternate(
    a: str, b: str, trees: dict[str, Path], scratch: Path, rounds: int, arguments: Sequence[str]
) -> list[str]:
    ratios: dict[tuple[object, ...], list[float]] = {}
    for number in range(rounds):
        taken = {}
        for name in (a, b) if number % 2 == 0 else (b, a):
            out = scratch / f"rows-{number}-{list(trees).index(name)}"
            _measure(trees[name], out, arguments)
            taken[name] = _times(out)
        for job in taken[a].keys() & taken[b].keys():
            ratios.setdefault(job, []).append(taken[a][job]["p50_ms"] / taken[b][job]["p50_ms"])
        print(f"round {number + 1} of {rounds} is done", file=sys.stderr, flush=True)
    if not ratios:
        raise NothingToCompare(f"{a} and {b} share no timed job")
    return [_line(job, found, min(found), max(found)) for job, found in sorted(ratios.items(), key=str)]
