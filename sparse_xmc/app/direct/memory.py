"""What a direct run takes at its peak, predicted from the sizes of its data, and what it is allowed to take.

Resident memory of the process, the compilation of kernels at their first use left out. Each figure is a count of what is
alive at once; what a label, a term and the interpreter take was measured (CPython 3.11, 64 bits).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparse_xmc.data.survey import Survey
from sparse_xmc.solver.plan import Plan, held_out_rows

_PROGRAM = 170 << 20  # interpreter, NumPy, SciPy, Numba and loaded kernels
_SVM_KERNELS = 4 << 20  # those that SVMs need beside them
_LABEL = 250  # of a label: its name, two dictionaries that know it, lists and counts
_TERM = 100  # of a term: its name, its place in the tables
_ROW = 48  # of a row: its place in features and targets
_TEST_ROW = 320  # of a row that is evaluated: beside that its best labels, their scores and whether they are right
_WEIGHT = 2  # of a connection of a stored model
_PAIR = 8  # of a number and the place it stands in
_PAIRS, _PAIRS_OF_LEVELS = 40, 60  # labels of a held-out row that are judged
_NUMBER = 8  # of such a pair
_ADDRESSES = 480 << 20  # of addresses beyond what is resident: libraries, stacks of threads, arenas


@dataclass(frozen=True)
class Predicted:
    """Bytes of a run by what they are for: of training, and of evaluating a test split afterwards."""

    parts: Mapping[str, int]
    evaluation: Mapping[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        return max(sum(self.parts.values()), sum(self.evaluation.values()))

    def __str__(self) -> str:
        return "\n\n".join([_table(self.parts), *([_table(self.evaluation)] if self.evaluation else [])])


def _table(parts: Mapping[str, int]) -> str:
    width = max(map(len, parts))
    lines = [f"{name.ljust(width)}  {size / 2**20:10,.0f} MiB" for name, size in parts.items()]
    return "\n".join([*lines, f"{'at the peak'.ljust(width)}  {sum(parts.values()) / 2**20:10,.0f} MiB"])


def data_bytes(sizes: Survey) -> dict[str, int]:
    """What the training split takes once it is read."""
    return {
        "program": _PROGRAM,
        "labels": round(sizes.labels * (_LABEL + sizes.name_bytes)),
        "terms": sizes.terms * _TERM,
        "rows": sizes.rows * _ROW + _PAIR * (sizes.entries + sizes.positives),
    }


def solver_bytes(sizes: Survey, plan: Plan, held_out: float | None = None) -> dict[str, int]:
    """What solving takes on top of that; ``held_out``: share of the rows that decide, as the option has it."""
    if sizes.positives <= sizes.labels:  # each label has one row: in closed form
        connections = sizes.labels * plan.rare[0]
        used = min(connections, sizes.entries)
        return {"head": connections * (_PAIR + 4), "inverted index": used * (_PAIR + 4)}
    if plan.whole:
        return _of_all_rows(sizes, plan, held_out)
    lists = sizes.rows * (plan.shortlist + plan.sample + plan.again * (plan.rounds - 1))
    connections = _connections(sizes, plan)
    clusters = min(plan.cluster_rows, sizes.rows * plan.clusters) if plan.clusterings else 0
    calibration = _calibration(sizes, plan, held_out)
    return {
        "kernels of SVMs": _SVM_KERNELS,
        "clusters": plan.clusterings * plan.clusters * plan.cluster_fan_in * _PAIR,
        "rows of the choice": round(0.95 * _PAIR * sizes.entries) if plan.choose else 0,
        "rows with a constant": _PAIR * (sizes.entries + sizes.rows) if plan.clusterings else 0,
        # while they are found, and beside what comes later
        "negatives, clusters, calibration": 4 * max(3 * lists, 2 * lists + max(3 * clusters, calibration // 4)),
        "head": 3 * connections * _PAIR,
        "inverted index": connections * _PAIR,
    }


def _calibration(sizes: Survey, plan: Plan, held_out: float | None) -> int:
    """What held-out rows are judged by: each kind of score, twice more between the knots of the label's frequency, and
    what a fit keeps of a pair."""
    if not plan.choose:
        return 0
    kinds, pairs = (5, _PAIRS_OF_LEVELS) if plan.clusterings else (3, _PAIRS)
    return _NUMBER * (3 * kinds + 9) * min(pairs, sizes.labels) * held_out_rows(sizes.rows, held_out)


def _connections(sizes: Survey, plan: Plan) -> int:
    """Of all labels, at the most that is tried."""
    return (sizes.labels - sizes.frequent) * plan.rare[-1] + sizes.frequent * plan.frequent[-1]


def _of_all_rows(sizes: Survey, plan: Plan, held_out: float | None) -> dict[str, int]:
    """Where every row is an example of every label."""
    wide = _PAIR * (sizes.entries + sizes.rows)
    return {
        "kernels of SVMs": _SVM_KERNELS,
        "examples": 4 * sizes.labels * sizes.rows,
        "rows with a constant": wide,
        "rows of the choice": round(0.95 * (wide + _PAIR * sizes.entries)) if plan.choose else 0,
        "calibration": _calibration(sizes, plan, held_out),
        "head": (1 + max(2, len(plan.costs))) * sizes.labels * plan.rare[0] * _PAIR,
        "inverted index": sizes.labels * plan.rare[0] * _PAIR,
    }


def evaluation_bytes(sizes: Survey, plan: Plan, test: Survey) -> dict[str, int]:
    """What evaluating takes, when the training split is gone: the model, its inverted index, the test split."""
    connections = _connections(sizes, plan)
    used = min(connections, sizes.entries) if sizes.positives <= sizes.labels else connections
    stored = _WEIGHT + (2 if sizes.terms <= 1 << 16 else 4)
    kept = {name: size for name, size in data_bytes(sizes).items() if name != "rows"}
    return {
        **kept,
        "model": connections * stored,
        "inverted index": used * _PAIR,
        "test rows": test.rows * _TEST_ROW + _PAIR * (test.entries + test.positives),
    }


def predicted(sizes: Survey, plan: Plan, test: Survey | None = None, held_out: float | None = None) -> Predicted:
    """The whole run; ``test``: the split that it evaluates at its end."""
    evaluation = {} if test is None else evaluation_bytes(sizes, plan, test)
    return Predicted(data_bytes(sizes) | solver_bytes(sizes, plan, held_out), evaluation)


def allowed_bytes(option: int | None) -> tuple[int, str] | None:
    """Resident memory that a run may take and what says so: the option, or the least of the limits that the process
    stands under; None: no limit but the machine's."""
    found = [] if option is None else [(option, "memory_limit")]
    found += [(limit - _ADDRESSES, name) for limit, name in _process_limits()]
    found += [(limit, "the control group") for limit in _group_limits()]
    return min(found, default=None)


def _process_limits() -> list[tuple[int, str]]:
    try:
        import resource
    except ImportError:  # not on Windows
        return []
    kinds = ((resource.RLIMIT_AS, "RLIMIT_AS"), (resource.RLIMIT_DATA, "RLIMIT_DATA"))
    limits = [(resource.getrlimit(kind)[0], name) for kind, name in kinds]
    return [(limit, name) for limit, name in limits if limit != resource.RLIM_INFINITY]


def _group_limits(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> list[int]:
    """Of the process's control group and those above it (version 2, and the memory controller of version 1)."""
    try:
        lines = Path(own).read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = Path(root, controllers) if controllers else Path(root)
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        folder = Path(os.path.normpath(f"{base}/{place}"))
        for level in (folder, *folder.parents):
            text = _text(level / name)
            if text.isdecimal() and int(text) < 1 << 60:  # "max", or about 2 ** 63: none
                limits.append(int(text))
            if level == base:
                break
    return limits


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def resident_bytes() -> int | None:
    """What the process holds now; None where that is not told."""
    for line in _text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return None
