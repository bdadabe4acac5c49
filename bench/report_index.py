"""Regenerates everything under ``reports/`` that comes from stored rows, and the index ``reports/README.md``."""

from __future__ import annotations

from pathlib import Path

from bench import answers, first_screen
from bench.environment import REPOSITORY
from bench.plotting import plot_folder
from bench.report import write_table
from bench.rows import FILE_NAME, RowFile

REPORTS = REPOSITORY / "reports"
_LOCAL = "local"


def _title(page: Path) -> str:
    """First heading of a Markdown page."""
    for line in page.read_text().splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
    return page.stem


def _where(folder: Path) -> str:
    last = [row for row in RowFile(folder).read() if "status" in row][-1]
    return str(last.get("gpu") or f"{last['cpu']}, {last['cores']} cores")


def _section(folder: Path, reports: Path) -> list[str]:
    name = folder.relative_to(reports).as_posix()
    out = [f"### {name}: {_where(folder)}", ""]
    pages = [f"[{_title(page)}]({name}/{page.name})" for page in sorted(folder.glob("*.md"))]
    figures = [f"[{p.stem.replace('_', ' ')}]({name}/figures/{p.name})" for p in sorted(folder.glob("figures/*.png"))]
    out += [f"- {page}" for page in pages]
    if figures:
        out.append(f"- Figures: {', '.join(figures)}")
    return [*out, f"- Rows: [{FILE_NAME}]({name}/{FILE_NAME})", ""]


def _gains(reports: Path) -> list[str]:
    folder = reports / "cpu"
    text = ["## What do I gain?", ""]
    if (folder / "figures" / "headline.png").exists():
        text += ["![Memory and time of a training step against the number of labels](cpu/figures/headline.png)", ""]
    rows = RowFile(folder).read()
    if any(row.get("kind") == "end" and row.get("suite") == "gain" for row in rows):
        text += [*first_screen.answers_of(rows), ""]
    return text


def _costs(reports: Path) -> list[str]:
    text = ["## What does it cost in accuracy?", ""]
    if (reports / "topology.jsonl").exists():
        text += [*answers.accuracy(reports), ""]
        text += ["More variants, seeds and findings: [accuracy](accuracy.md), [topology](topology.md).", ""]
    peers = RowFile(reports / "compare").read()
    if peers:
        more = "From text to predictions, every metric, and where we lose: [compare](compare.md)."
        text += [*answers.classifiers(peers), "", more, ""]
    return text


_NO_GPU = [
    "No GPU has been measured: every time here is of a CPU. For GPUs there is what can be known without one:",
    "",
    "- every Triton kernel is compiled offline for sm_80, sm_90 and gfx942 on every change, with Triton 3.6, 3.7 and 3.9, and",
    "  spills, atomics and tensor-core instructions are counted: [static analysis](static_analysis.md); and at",
    "  [shapes at the edge](edges.md);",
    "- every op runs in Triton's interpreter against a dense float64 oracle on every change;",
    "- `bash bench/gpu_suite.sh FOLDER` measures everything on a machine that has one, unattended.",
    "",
]


def _gpus(folders: list[Path], reports: Path) -> list[str]:
    gpus = [folder for folder in folders if any(row.get("gpu") for row in RowFile(folder).read())]
    text = ["## What about GPUs?", ""]
    if not gpus:
        return [*text, *_NO_GPU]
    return [*text, *(f"- [{_where(folder)}]({folder.relative_to(reports).as_posix()})" for folder in gpus), ""]


def _appendix(folders: list[Path], reports: Path) -> list[str]:
    """Where the rows come from: the log of findings, and machine, versions and commits of every folder."""
    text = [
        "## Appendix",
        "",
        "- [The log of findings](findings.md): predictions, measurements, what was kept and dropped",
    ]
    for folder in folders:
        rows = [row for row in RowFile(folder).read() if row.get("status") == "ok"]
        commits = sorted({str(row["commit"])[:8] for row in rows})
        name = folder.relative_to(reports).as_posix()
        text.append(f"- Rows of {name}: torch {rows[-1]['torch']}; commits {', '.join(commits)}")
    return [
        *text,
        "",
        "Figures and tables of a machine, and this page, are made by `python -m bench report` from stored rows. Such a row",
        "carries commit, command, versions, hardware and seed. A row of the accuracy study carries commit, seed and number of",
        "threads, a row of the head or the topology study only its settings and seed.",
        "",
    ]


def regenerate(reports: Path = REPORTS) -> Path:
    """Figures and tables of every folder with rows, then the index. Measures nothing."""
    rows = [*sorted(reports.glob(f"*/{FILE_NAME}")), *sorted(reports.glob(f"gpu/*/{FILE_NAME}"))]
    folders = [p.parent for p in rows if p.parent.name != _LOCAL]
    measured = []
    for folder in folders:
        if any(row.get("kind") in ("time", "memory") for row in RowFile(folder).read()):
            plot_folder(folder)
            write_table(folder)
            measured.append(folder)
    pages = [p for p in sorted(reports.glob("*.md")) if p.name not in ("README.md", "findings.md")]
    others = [p for p in sorted(reports.glob("*/*.md")) if p.parent not in measured and p.parent.name != _LOCAL]
    text = [
        "# Reports",
        "",
        *_gains(reports),
        *_costs(reports),
        *_gpus(measured, reports),
        "## All figures and tables",
        "",
    ]
    for folder in measured:
        text += _section(folder, reports)
    text += ["## Reports on one question", ""]
    text += [
        *(f"- [{_title(p)}]({p.relative_to(reports)})" for p in (*pages, *others)),
        "",
        *_appendix(measured, reports),
    ]
    index = reports / "README.md"
    index.write_text("\n".join(text))
    return index
