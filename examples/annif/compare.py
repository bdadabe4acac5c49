"""Annif's omikuji backend beside ours on one data set, by Annif's own evaluation; everything in a scratch folder.

    python compare.py ../../../shared/data/TIBKAT-EN --out scratch        # train.jsonl.gz and test.jsonl.gz: text, labels

Prints a Markdown table: F1@5 and nDCG (averaged over documents), CPU seconds of training and of evaluation, bytes on disk.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMAND = "import sparse_xmc_annif, words_analyzer; from annif.cli import cli; cli()"
PROJECTS = """
[omikuji]
name=Trees
language=en
backend=omikuji
analyzer=words
vocab=subjects
min_df=2
limit=100

[sparse_xmc]
name=Fixed fan-in
language=en
backend=sparse_xmc
vocab=subjects
limit=100
"""


def _uri(label: object) -> str:
    return f"<http://example.org/{label}>"


def write_corpus(data: Path, out: Path) -> None:
    """The vocabulary, both splits and ``projects.cfg``; subjects that only the test split has count as missed."""
    subjects: set[str] = set()
    for split in ("train", "test"):
        with gzip.open(data / f"{split}.jsonl.gz", "rt") as source, open(out / f"{split}.tsv", "w") as target:
            for line in source:
                record = json.loads(line)
                subjects.update(map(str, record["labels"]))
                text = " ".join(record["text"].split())
                target.write(f"{text}\t{' '.join(_uri(label) for label in record['labels'])}\n")
    (out / "subjects.tsv").write_text("".join(f"{_uri(label)}\t{label}\n" for label in sorted(subjects)))
    (out / "projects.cfg").write_text(PROJECTS)


def annif(out: Path, *arguments: str) -> float:
    """Runs Annif with both backends known; returns the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", COMMAND, *arguments], cwd=out, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _mebibytes(folder: Path) -> float:
    """Of the model: not of the documents that a backend keeps for training again, nor of checkpoints."""
    files = [f for f in folder.rglob("*") if f.is_file() and "-train" not in f.name and "checkpoints" not in f.parts]
    return sum(f.stat().st_size for f in files) / 2**20


def compare(data: Path, out: Path) -> list[str]:
    """Lines of the table."""
    write_corpus(data, out)
    annif(out, "load-vocab", "--language", "en", "--force", "subjects", "subjects.tsv")
    lines = ["| backend | F1@5 | nDCG | training CPU s | evaluation CPU s | MiB |", "|---|---:|---:|---:|---:|---:|"]
    for project in ("omikuji", "sparse_xmc"):
        training = annif(out, "train", project, "train.tsv")
        metrics = ("--metric", "F1@5", "--metric", "NDCG", "--metrics-file", f"{project}.json")
        evaluation = annif(out, "eval", *metrics, project, "test.tsv")
        found = json.loads((out / f"{project}.json").read_text())
        size = _mebibytes(out / "data" / "projects" / project)
        figures = f"{found['F1@5']:.4f} | {found['NDCG']:.4f} | {training:.0f} | {evaluation:.0f} | {size:.1f}"
        lines.append(f"| {project} | {figures} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="scratch folder")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    print("\n".join(compare(arguments.data.resolve(), arguments.out.resolve())))


if __name__ == "__main__":
    main()
