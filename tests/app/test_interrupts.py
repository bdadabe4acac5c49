"""Ctrl-C ends every command in one line and with status 130, whenever it comes; what was there before is intact."""

import json
import os
import subprocess
import sys

import pytest

from sparse_xmc.app.cli import main
from tests.conftest import INTERPRETING

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals"),
    pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels"),
]
# jobs in the background begin with interrupts ignored
DEFAULT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
PRELUDE = """
import os, signal, sys, time

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(9)

module, sys.argv = sys.argv[1], [sys.argv[0], *sys.argv[2:]]

class At:
    def find_spec(self, name, path, target=None):
        if name == module:
            sys.meta_path.remove(self)
            {how}

sys.meta_path.insert(0, At())
from sparse_xmc.__main__ import main
"""
RAISED = "interrupt()"
SWALLOWED = """try: interrupt()
            except BaseException: raise ImportError("a module that takes every error for its own")"""
FORGOTTEN = """
            class Dying:
                def __del__(self): interrupt()
            Dying()
            raise ImportError("not reached")"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("interrupts")
    with open(path / "train.jsonl", "w", encoding="utf-8") as file:
        for i in range(30):
            file.write(json.dumps({"text": f"word{i % 3} and{i % 5}", "labels": [i % 3]}) + "\n")
    return path


def interrupted(folder, module, how):
    """A training in which an interrupt comes when a module is looked for."""
    code = DEFAULT + PRELUDE.format(how=how) + "\nsys.exit(main())"
    command = [sys.executable, "-c", code, module, "train", "--train", "train.jsonl", "--out", "run", "--no-progress"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("module", "how"),
    [("argparse", RAISED), ("numpy", RAISED), ("numba", RAISED), ("numba", SWALLOWED), ("scipy.sparse", FORGOTTEN)],
)
def test_while_packages_are_imported(folder, module, how):
    done = interrupted(folder, module, how)
    assert done.returncode == 130 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("sparse_xmc: interrupted") and not (folder / "run").exists()


def test_where_interrupts_are_ignored_they_stay_so(folder):
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + PRELUDE.format(
        how="os.kill(os.getpid(), 2)"
    )
    code += "\nprint(main()); assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    command = [sys.executable, "-c", code, "argparse", "inspect", "nowhere"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "1\n" and "holds no trained model" in done.stderr


@pytest.mark.parametrize(
    "options", [[], ["--epochs", "2", "--embedding-dim", "4", "--lexical-fan-in", "2", "--fan-in", "2"]]
)
def test_while_files_are_written(folder, tmp_path, monkeypatch, capsys, options):
    """Wherever among the writes of a run: one line; the same command then makes the model that it would have made."""
    run = [
        "train",
        "--train",
        str(folder / "train.jsonl"),
        "--no-progress",
        "--threads",
        "1",
        "--min-df",
        "1",
        *options,
    ]
    assert main([*run, "--out", str(tmp_path / "whole")]) == 0
    flush, left = os.fsync, [0]

    def counted(descriptor):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", counted)
    for number in range(1, 60, 5):
        left[0] = number
        capsys.readouterr()
        status = main([*run, "--out", str(tmp_path / "parts")])
        if status == 0:
            break
        said = capsys.readouterr().err
        assert status == 130 and said.startswith("sparse_xmc: interrupted; the same command") and said.count("\n") == 1
    assert status == 0 and number > 1
    contents = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert contents[0] == contents[1]
    assert not [name for _, folders, files in os.walk(tmp_path) for name in [*folders, *files] if ".partial" in name]


def test_a_warning_of_a_command_is_one_line_without_its_place_in_the_code(folder):
    code = "import warnings; from sparse_xmc.__main__ import main; main(); warnings.warn('none of\\nits labels', stacklevel=1)"
    command = [sys.executable, "-c", code, "inspect", "nowhere"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.splitlines()[1:] == ["sparse_xmc: none of its labels"]
