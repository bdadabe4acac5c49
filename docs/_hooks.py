"""Lets pages show figures of ``reports/``, which stand outside of the documentation's folder, as ``reports/...``."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    for figure in sorted((ROOT / "reports").rglob("*.png")):
        if "local" not in figure.parts:
            path = figure.relative_to(ROOT).as_posix()
            files.append(File(path, str(ROOT), config["site_dir"], config["use_directory_urls"]))
    return files
