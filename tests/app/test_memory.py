"""The memory of direct runs: predicted before their work, compared with what they take and with what they may take."""

import json
import os
import random
import resource
import subprocess
import sys

import pytest

from sparse_xmc.app.cli import main
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct import memory
from sparse_xmc.app.direct.foresight import prediction, surveyed, surveyed_test
from sparse_xmc.app.splits import open_data
from sparse_xmc.data.source import Source
from sparse_xmc.data.survey import count_lines, frequent_labels, survey
from tests.conftest import INTERPRETING

pytestmark = [
    pytest.mark.skipif(INTERPRETING, reason="solves with the CPU kernels"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]
OPTIONS = {"min_df": 1, "fan_in": 32, "threads": 2}


def write(path, rows, labels=None, named=False):
    """Texts of twelve words, each row with a label of its own or one of ``labels``; if ``named``, every other text names it."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(rows):
            words = " ".join(f"w{min(int(rng.paretovariate(0.7)), 40_000)}" for _ in range(12))
            if named and rng.random() < 0.5:
                words += f" about{i % labels}"
            file.write(json.dumps({"text": words, "labels": [f"L{i if labels is None else i % labels}"]}) + "\n")
    return str(path)


def command(train, out, *more):
    flags = [text for name, value in OPTIONS.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    return [
        sys.executable,
        "-m",
        "sparse_xmc",
        "train",
        "--train",
        train,
        "--out",
        str(out),
        "--no-progress",
        *flags,
        *more,
    ]


_PEAK = """
import re, sys
from sparse_xmc.app.cli import main
assert main(sys.argv[1:]) == 0
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak(train, out, *more):
    """Peak resident bytes of a run in a process of its own (what wait tells begins with those of the process it left)."""
    arguments = command(train, out, *more)[3:]
    done = subprocess.run([sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1]) * 1024


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Kernels are compiled once before memory is measured."""
    folder = tmp_path_factory.mktemp("compiled")
    for name, labels in (("own", None), ("few", 20), ("many", 1_000)):
        peak(write(folder / f"{name}.jsonl", 34_000 if name == "many" else 500, labels), folder / name)


@pytest.mark.parametrize(
    ("rows", "labels", "named", "held_out"),
    [
        (3_000, None, False, None),
        (50_000, None, False, None),
        (100_000, None, False, None),
        (10_000, 50, False, None),
        (10_000, 50, True, 0.5),
        (40_000, 900, False, None),
        (40_000, 900, True, None),
    ],
)
def test_the_peak_of_a_run_is_predicted_within_a_tenth(tmp_path, compiled, rows, labels, named, held_out):
    train = write(tmp_path / "train.jsonl", rows, labels, named)
    config = TrainingConfig(train=train, solver="direct", held_out=held_out, **OPTIONS)
    told = prediction(config, surveyed(config, open_data(config, train, None, texts=False))).peak
    taken = peak(train, tmp_path / "run", *([] if held_out is None else ["--held-out", str(held_out)]))
    assert abs(told / taken - 1) < 0.1, (told / 2**20, taken / 2**20)


def test_the_evaluation_of_a_huge_test_split_is_predicted_too(tmp_path, compiled, monkeypatch):
    train, test = write(tmp_path / "train.jsonl", 2_000), write(tmp_path / "test.jsonl", 150_000, 2_000)
    config = TrainingConfig(train=train, test=test, solver="direct", **OPTIONS)
    sizes = surveyed(config, open_data(config, train, None, texts=False))
    told, without = prediction(config, sizes, surveyed_test(config)).peak, prediction(config, sizes).peak
    taken = peak(train, tmp_path / "run", "--test", test)
    assert told > 1.15 * without
    assert abs(told / taken - 1) < 0.1, (told / 2**20, taken / 2**20)
    monkeypatch.setattr("sparse_xmc.app.direct.foresight._SWOLLEN", 10**6)  # as of larger files
    tight = ["train", "--train", train, "--min-df", "1", "--fan-in", "32", "--out", str(tmp_path / "tight")]
    limit = ["--memory-limit", str((told + without) // 2)]
    assert main([*tight, *limit, "--test", test]) == 1
    assert not os.path.exists(tmp_path / "tight")


def test_features_are_counted_as_they_are(tmp_path, capsys):
    (tmp_path / "train.txt").write_text("3 4 2\n0 0:1 1:2\n1 2:1\n0,1 3:0 0:1\n")
    assert main(["memory", "--train", str(tmp_path / "train.txt"), "--test", str(tmp_path / "train.txt")]) == 0
    out = capsys.readouterr().out
    assert "about 3 rows, 2 labels, 4 terms, 4 terms of all rows" in out and out.count("at the peak") == 2
    assert main(["memory", "--train", str(tmp_path / "train.txt"), "--test", str(tmp_path / "nowhere.txt")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_sizes_are_told_from_the_first_rows_and_the_lines(tmp_path):
    train = write(tmp_path / "train.jsonl", 30_000, 300)
    config = TrainingConfig(train=train)
    found = survey(open_data(config, train, None, texts=False), count_lines(Source(train)))
    assert (found.rows, found.labels, found.positives) == (30_000, 300, 30_000)
    assert (found.frequent, found.frequent_positives) == (300, 30_000)
    assert frequent_labels([0, 0, 0, 2, 2, 5], 2.0, 4) == (2, 10, 6) and frequent_labels([], 2.0, 4) == (0, 0, 0)
    whole = TrainingConfig(train=write(tmp_path / "all.jsonl", 15_000, 300))
    assert survey(open_data(whole, whole.train, None, texts=False), 15_000).entries == pytest.approx(
        found.entries / 2, rel=0.02
    )


def test_what_is_too_much_ends_in_one_line_before_the_work(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", 500)
    arguments = [
        "train",
        "--train",
        train,
        "--out",
        str(tmp_path / "run"),
        "--min-df",
        "1",
        "--memory-limit",
        "1000000",
    ]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("sparse_xmc: the run is predicted to take ") and error.count("\n") == 1
    assert "MiB of memory, memory_limit allows 1 MiB" in error
    assert not os.path.exists(tmp_path / "run")
    assert main([*arguments[:-1], str(1 << 40)]) == 0


def test_a_limit_of_the_process_counts(tmp_path, compiled):
    limit = 600 << 20
    done = subprocess.run(
        command(write(tmp_path / "train.jsonl", 20_000), tmp_path / "run"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 1 and "RLIMIT_AS allows 120 MiB" in done.stderr and done.stderr.count("\n") == 1
    assert not os.path.exists(tmp_path / "run")


def test_limits_of_control_groups_are_found_in_both_versions(tmp_path, monkeypatch):
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    for folder, name, text in (
        ("", "memory.max", "max"),
        ("a/b", "memory.max", "max"),
        ("a", "memory.max", "5000"),
        ("memory", "memory.limit_in_bytes", str(2**63 - 4096)),
        ("memory/c", "memory.limit_in_bytes", "7000"),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_text(text + "\n")
    own.write_text("4:memory:/c\n1:cpu:/x\n0::/a/b\n")
    assert sorted(memory._group_limits(str(root), str(own))) == [5000, 7000]
    assert memory._group_limits(str(root), str(tmp_path / "none")) == []
    monkeypatch.setattr(memory, "_group_limits", lambda: [5000])
    assert memory.allowed_bytes(6000) == (5000, "the control group")
    assert memory.allowed_bytes(4000) == (4000, "memory_limit")


def test_the_command_says_what_a_run_takes_and_refuses_options_of_heads(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", 500)
    assert main(["memory", "--train", train, "--fan-in", "16", "--min-df", "1"]) == 0
    out = capsys.readouterr().out
    assert "about 500 rows, 500 labels" in out and "at the peak" in out
    for arguments, message in (
        (["--train", train, "--dtype", "bfloat16"], "--dtype has no effect with --train"),
        (["--labels", "5", "--min-df", "1"], "--min-df has no effect without --train"),
        (["--train", train, "--group-size", "4"], "group_size=4 has no effect with solver='direct'"),
    ):
        assert main(["memory", *arguments]) == 1
        assert message in capsys.readouterr().err
