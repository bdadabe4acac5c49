"""Table of what every Triton kernel compiles to, without a GPU: ``python -m bench static --out reports``.

Writes ``static_analysis.json`` (the rows, baseline of the regression test) and ``static_analysis.md``. Takes about a
minute on two cores. Nothing here is a time: caches, latencies and clocks are not part of it.
"""

from __future__ import annotations

import json
import multiprocessing
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import triton

from bench import offline, static_cases
from bench.executed import executed
from bench.static_comparison import comparison

NAME = "static_analysis"
_LOAD = re.compile(r"ld\.global|cp\.async\.c[ag]|(?:global|buffer)_load")
_ARITHMETIC = re.compile(r"(?:fma|add|mul|sub)\.(?:\w+\.)*f(?:16|32|64)|v_(?:pk_)?(?:fma|fmac|add|mul|sub)_f")
_TENSOR_CORE = ("wgmma", "mma", "mfma")
_ROWS = 128  # of the batch in every case
_TILES_WITH_POSITIVES = 0.03  # 5 positives a row among 670,091 labels in groups of 32
_WALKS = {"fused_head", "backward_weight_kernel"}  # over the batch, in one program
_COUNTED = {"fused_head", "tile_maxima_kernel", "rescore_kernel"}
_COUNTED_OF_GROUPS = {"forward_kernel", "backward_input_kernel", "backward_weight_kernel"}
_BATCH_WORK = ("HGMMA", "HMMA", "REDG", "RED.", "ATOM", "STG")


def rows_of(case: str, target: str) -> list[dict[str, Any]]:
    """One row for each different kernel that a case launches."""
    found: dict[str, dict[str, Any]] = {}
    chosen = offline.TARGETS[target]
    for launch in offline.recorded(static_cases.cases()[case].launch, chosen):
        compiled = offline.compile_for(launch, chosen)
        facts = offline.facts(compiled, chosen)
        loop: Counter[str] = max(offline.inner_loops(compiled, chosen), key=lambda c: c.total(), default=Counter())
        tiles = {name: value for name, value in launch.kwargs.items() if name.startswith(("BLOCK_", "UNROLL"))}
        found[launch.kernel.__name__] = {
            "case": case,
            "kernel": launch.kernel.__name__,
            "target": target,
            "tiles": " ".join(f"{name.removeprefix('BLOCK_')}={value}" for name, value in tiles.items()),
            "warps": facts.warps,
            "registers": facts.registers,
            "spilled": facts.spilled,
            "shared": facts.shared,
            "occupancy": round(facts.occupancy, 2),
            "load_bytes": facts.load_bytes,
            "tensor_core": sum(facts.instructions.get(name, 0) for name in _TENSOR_CORE),
            "atomics": facts.instructions.get("red", 0),
            "shuffles": facts.instructions.get("shuffle", 0),
            "executed": _executed(launch, compiled) if target == "sm_90" else None,
            "loop": loop.total(),
            "loop_loads": sum(count for name, count in loop.items() if _LOAD.match(name)),
            "loop_arithmetic": sum(count for name, count in loop.items() if _ARITHMETIC.match(name)),
        }
    return list(found.values())


def _executed(launch: offline.Launch, compiled: Any) -> int | None:
    """Expected instructions of a program's warps on its first batch, if it counts them; else None.

    For 128 rows of a batch, which a program walks over in tiles or shares with others. Loops over the batch are those with
    matrix products, atomics or stores; all others belong to positives, which ``_TILES_WITH_POSITIVES`` have.
    """
    name, grouped = launch.kernel.__name__, "BLOCK_G" in launch.kwargs
    if name not in _COUNTED and not (grouped and name in _COUNTED_OF_GROUPS):
        return None
    tiles = _ROWS // min(launch.kwargs.get("BLOCK_B", _ROWS), _ROWS)
    walks = name in _WALKS

    def trips(names: list[str]) -> float | None:
        return tiles if walks and any(name.startswith(_BATCH_WORK) for name in names) else None

    one = executed(compiled.asm["sass"], trips, _TILES_WITH_POSITIVES)
    return round(one * compiled.metadata.num_warps * (1 if walks else tiles))


def _rows_or_error(case: str, target: str) -> list[dict[str, Any]]:
    try:
        return rows_of(case, target)
    except Exception as error:  # whatever a compiler may raise: the table says so and goes on
        reason = str(error).strip().splitlines() or [type(error).__name__]
        return [{"case": case, "target": target, "error": reason[-1][:200]}]


def regressions(row: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """In what a kernel is worse than its row of the baseline, beyond the compiler's whims."""
    out = []
    if row["registers"] > before["registers"] + 16:
        out.append("registers")
    if row["shared"] > before["shared"]:
        out.append("shared")
    if row["load_bytes"] < before["load_bytes"]:
        out.append("load_bytes")
    if bool(row["tensor_core"]) < bool(before["tensor_core"]):
        out.append("tensor_core")
    if row["atomics"] > before["atomics"]:
        out.append("atomics")
    if before["loop"] and row["loop"] > 1.1 * before["loop"]:
        out.append("loop")
    if before.get("executed") and (row["executed"] or 0) > 1.03 * before["executed"]:
        out.append("executed")
    return [f"{name} {before[name]} -> {row[name]}" for name in out]


def read(folder: Path) -> dict[str, Any]:
    """The baseline: {"triton": version, "rows": [...]}; no rows if there is none."""
    file = folder / f"{NAME}.json"
    return json.loads(file.read_text()) if file.exists() else {"triton": None, "rows": []}


def write(folder: Path, cases: Sequence[str] | None = None, jobs: int = 2) -> Path:
    """Compiles cases (default: all) for every target and writes both files to ``folder``.

    Rows of other cases that the same Triton version has left there stay.
    """
    chosen = list(static_cases.cases()) if cases is None else list(cases)
    before = read(folder)
    kept = before["rows"] if before["triton"] == triton.__version__ else []
    rows = [row for row in kept if row["case"] not in chosen and row["case"] in static_cases.cases()]
    tasks = [(case, target) for case in chosen for target in offline.TARGETS]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(_rows_or_error, *zip(*tasks, strict=True), chunksize=4):
            rows += part
    rows.sort(key=lambda row: list(static_cases.cases()).index(row["case"]))
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    (folder / f"{NAME}.json").write_text(f'{{\n "triton": "{triton.__version__}",\n "rows": [\n{lines}\n ]\n}}\n')
    out = folder / f"{NAME}.md"
    out.write_text(_markdown(rows))
    return out


def _markdown(rows: list[dict[str, Any]]) -> str:
    parts = [
        "# What the Triton kernels compile to",
        "",
        f"Triton {triton.__version__}, default configurations, compiled without a GPU by "
        "`python -m bench static --out reports`. No figure here is a time.",
        "",
        "`reg`: registers per thread (AMD: vector registers). `spill`: bytes of stack per thread. `shared`: bytes per "
        "block. `occ`: share of a multiprocessor's warps that registers and shared memory admit. `load`: bytes of the "
        "widest global load of a thread. `tc`, `red`, `shfl`: tensor-core, atomic and shuffle instructions. `loop`: "
        "instructions of the largest innermost loop, as `all / global loads / float arithmetic`, in the listing (PTX, AMD "
        "assembler). `run`: expected warp instructions for a tile of labels and 128 rows, counted in sm_90's machine code "
        "(`bench/executed.py`).",
        *comparison(rows),
    ]
    for row in rows:
        if "error" in row:
            parts += ["", f"**{row['case']} does not compile for {row['target']}**: {row['error']}"]
    rows = [row for row in rows if "error" not in row]
    for target in dict.fromkeys(row["target"] for row in rows):
        header = "| case | kernel | tiles | warps | reg | spill | shared | occ | load | tc | red | shfl | run | loop |"
        parts += ["", f"## {target}", "", header, "|---" * 3 + "|---:" * 10 + "|---|"]
        for row in rows:
            if row["target"] == target:
                loop = f"{row['loop']} / {row['loop_loads']} / {row['loop_arithmetic']}" if row["loop"] else ""
                names = ("case", "kernel", "tiles", "warps", "registers", "spilled", "shared", "occupancy")
                names += ("load_bytes", "tensor_core", "atomics", "shuffles")
                run = row.get("executed") or ""
                parts.append(f"| {' | '.join(str(row[name]) for name in names)} | {run} | {loop} |")
    return "\n".join(parts) + "\n"


def main(folder: Path) -> int:
    """Writes the table and prints where it is."""
    print(write(folder))
    return 0
