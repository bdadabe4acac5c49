"""The page about shapes at the edge: which were compiled for what, and the stack that kernels take, by name."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.edges import DTYPES, EDGES, Edge, by_nature

_SIZES = Edge._fields
Row = dict[str, Any]


def write(rows: list[Row], path: Path) -> None:
    """Writes the page that ``rows`` of ``edges.jsonl`` make."""
    path.write_text("\n".join([*_head(), *_counts(rows), *_problems(rows), *_small_stacks(rows), ""]))


def _head() -> list[str]:
    dtypes = ", ".join(" x ".join(str(d).removeprefix("torch.") for d in dict.fromkeys(pair)) for pair in DTYPES)
    return [
        "# Shapes at the edge",
        "",
        "Every launcher on sizes of 1, sizes that are no multiples of 16, one more than a block, many labels in a group and "
        "many connections, compiled without a GPU by `python -m bench edges --report reports/edges.md`; `PYTHONPATH` chooses "
        "the Triton release. Nothing here ran on a GPU, and no figure is a time.",
        "",
        f"{len(EDGES)} shapes: {'; '.join(_sizes(edge._asdict()) for edge in EDGES)}.",
        "",
        f"Dtypes of x and weight: {dtypes}. Calls: forward, input gradient (also deterministic), weight gradient, gradients of "
        "the loss, fused step with SGD, momentum and Adam with and without the loss's value, top-k (not in float64), rewiring. "
        "In NVIDIA's PTX every kernel is also searched for a load and a store of one address under different predicates with "
        "no barrier between.",
        "",
    ]


def _sizes(row: Row) -> str:
    return " ".join(f"{name}={row[name]}" for name in _SIZES)


def _counts(rows: list[Row]) -> list[str]:
    lines = [
        "| Triton | target | shapes | dtypes | kernels | no stack | 1 to 16 bytes | more, float64 | other problems |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for triton, target in sorted({(row["triton"], row["target"]) for row in rows}):
        here = [row for row in rows if (row["triton"], row["target"]) == (triton, target)]
        shapes, dtypes = (len(set(found)) for found in (map(_sizes, here), (row["dtypes"] for row in here)))
        bad = [row for row in here if row["problems"]]
        nature = sum(map(by_nature, bad))
        none = sum(not row["problems"] and not row["spilled"] for row in here)
        fine = len(here) - len(bad) - none
        cells = (triton, target, shapes, dtypes, f"{len(here):,}", f"{none:,}", fine, nature, len(bad) - nature)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    partly = sorted({row["triton"] for row in rows} - _with_all_shapes(rows))
    for triton in partly:
        shapes = dict.fromkeys(_sizes(row) for row in rows if row["triton"] == triton)
        lines += ["", f"Triton {triton}, a sample: {'; '.join(shapes)}."]
    return [*lines, ""]


def _with_all_shapes(rows: list[Row]) -> set[str]:
    """Releases that all shapes were compiled with."""
    shapes = {
        triton: {_sizes(row) for row in rows if row["triton"] == triton} for triton in {r["triton"] for r in rows}
    }
    return {triton for triton, found in shapes.items() if len(found) >= len(set(EDGES))}


def _problems(rows: list[Row]) -> list[str]:
    lines = ["## Spills by nature, and problems", ""]
    lines += [
        "float64 is there for checks of gradients: a number takes two registers, there are no tensor cores for it, and its "
        "tiles are not made smaller for a few bytes.",
        "",
    ]
    bad = sorted((row for row in rows if row["problems"]), key=by_nature)
    for row in bad:
        note = " (by nature)" if by_nature(row) else ""
        name = f"`{row['kernel']}` of {row['call']}, {row['dtypes']}, {_sizes(row)}"
        lines.append(f"- Triton {row['triton']}, {row['target']}: {name}: {'; '.join(row['problems'])}{note}")
    return [*lines, *([] if bad else ["None."]), ""]


def _small_stacks(rows: list[Row]) -> list[str]:
    """At most 16 bytes, which the compile gate takes for none: by kernel and dtypes."""
    lines = [
        "## Stack of at most 16 bytes",
        "",
        "| kernel | dtypes | kernels | most bytes | where |",
        "|---|---|---:|---:|---|",
    ]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.get("spilled") and not row["problems"]:
            groups[row["kernel"], row["dtypes"]].append(row)
    for (kernel, dtypes), found in sorted(groups.items()):
        places = sorted({f"{row['target']} {row['triton']}" for row in found})
        most = max(row["spilled"] for row in found)
        lines.append(f"| {kernel} | {dtypes} | {len(found)} | {most} | {', '.join(places)} |")
    return lines
