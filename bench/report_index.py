"""Regenerates everything under ``reports/`` that comes from stored rows, and the index ``reports/README.md``."""

from __future__ import annotations

from pathlib import Path

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


def _machine(folder: Path) -> str:
    rows = [row for row in RowFile(folder).read() if "status" in row]
    last = rows[-1]
    where = last.get("gpu") or f"{last['cpu']}, {last['cores']} cores"
    commits = sorted({str(r["commit"])[:8] for r in rows if r.get("status") == "ok"})
    return f"{where}; torch {last['torch']}; commit {', '.join(commits)}"


def _section(folder: Path, reports: Path) -> list[str]:
    name = folder.relative_to(reports).as_posix()
    out = [f"## {name}: {_machine(folder)}", ""]
    if (folder / "figures" / "headline.png").exists():
        out += [f"![Peak memory and step time against the number of labels]({name}/figures/headline.png)", ""]
    pages = [f"[{_title(page)}]({name}/{page.name})" for page in sorted(folder.glob("*.md"))]
    figures = [f"[{p.stem.replace('_', ' ')}]({name}/figures/{p.name})" for p in sorted(folder.glob("figures/*.png"))]
    out += [f"- {page}" for page in pages]
    if figures:
        out.append(f"- Figures: {', '.join(figures)}")
    return [*out, f"- Rows: [{FILE_NAME}]({name}/{FILE_NAME})", ""]


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
    has_gpu = any(row.get("gpu") for folder in measured for row in RowFile(folder).read())
    text = [
        "# Reports",
        "",
        "Index, figures and tables of a machine are made by `python -m bench report` from its stored rows. Such a row carries",
        "commit, command, versions, hardware and seed; its figures name commits and machine. A row of the accuracy study",
        "carries commit, seed and number of threads, a row of the head or the topology study only its settings and seed.",
        "",
    ]
    if not has_gpu:
        text += ["No GPU has been measured yet: every figure here is of a CPU.", ""]
    for folder in measured:
        text += _section(folder, reports)
    pages = [p for p in sorted(reports.glob("*.md")) if p.name != "README.md"]
    others = [p for p in sorted(reports.glob("*/*.md")) if p.parent not in measured and p.parent.name != _LOCAL]
    if pages or others:
        text += ["## Findings and other reports", ""]
        text += [f"- [{_title(p)}]({p.relative_to(reports)})" for p in (*pages, *others)]
        text.append("")
    index = reports / "README.md"
    index.write_text("\n".join(text))
    return index
