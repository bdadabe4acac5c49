"""Random sets of options: a model with sound metrics, or one line that says what is wrong.

python -m tests.app.test_option_fuzz 1000        # as many sets as that
"""

import contextlib
import io
import json
import math
import random
import sys
import tempfile
from pathlib import Path

import pytest

from sparse_xmc.app.cli import main
from sparse_xmc.app.config import TrainingConfig, load_toml
from sparse_xmc.app.options import entries
from tests.conftest import INTERPRETING

FILES = {"train", "test", "valid", "train_labels", "test_labels", "valid_labels", "test_filter", "out"}
OTHER = {"transformer", "device", "progress", "threads", "text_field", "label_field", "label_separator"}
TAKEN = [entry for entry in entries(TrainingConfig) if entry.name not in FILES | OTHER]
NUMBERS = {
    "int": ["0", "1", "2", "3", "4", "7", "16", "33", "-1", "100000000000000000000", "1.5", "x"],
    "float": ["0", "0.1", "0.2", "0.5", "0.9", "1", "1.5", "-1", "nan", "inf", "1e-300", "1e300", "x"],
}
SMALL = {"int": ["1", "2", "3", "4", "8"], "float": ["0.1", "0.2", "0.3", "0.5"]}


def write_data(folder):
    rng = random.Random(0)
    for name, rows in (("train", 40), ("test", 12)):
        lines = []
        for _ in range(rows):
            words = rng.sample(range(16), 4)
            lines.append(
                json.dumps({"text": " ".join(f"word{w}" for w in words), "labels": [w for w in words if w < 8]})
            )
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def drawn(rng):
    """Up to four options, mostly of small values that are allowed, with the flags that a quick run needs."""
    flags = {"epochs": "1", "batch_size": "16"}
    for entry in rng.sample(TAKEN, rng.randint(1, 4)):
        if entry.kind == "bool":
            flags[entry.name] = None
        elif entry.option.choices:
            flags[entry.name] = rng.choice([*entry.option.choices, *entry.option.choices, "none of these"])
        else:
            flags[entry.name] = rng.choice((SMALL if rng.random() < 0.7 else NUMBERS)[entry.kind])
    result = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        result += [f"--no-{flag}" if rng.random() < 0.5 else f"--{flag}"] if value is None else [f"--{flag}={value}"]
    return result


def outcome(folder, flags, number):
    """What a training with these flags says or makes; an AssertionError where it is neither of the two."""
    out = folder / f"run{number}"
    command = ["train", "--train", str(folder / "train.jsonl"), "--test", str(folder / "test.jsonl"), "--out", str(out)]
    errors, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(said):
        try:
            status = main([*command, "--no-progress", "--threads=1", *flags])
        except SystemExit as ended:  # argparse: a value of another type
            assert ended.code == 2 and "error: argument" in errors.getvalue(), errors.getvalue()
            return "argument"
    lines = [line for line in errors.getvalue().splitlines() if "compiling kernels" not in line]
    if status:
        assert status == 1 and len(lines) == 1 and lines[0].startswith("sparse_xmc: "), errors.getvalue()
        assert not any(word in lines[0] for word in ("Traceback", "object has no attribute", "must match"))
        return "refused" if not (out / "identity.json").exists() else "stopped"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["rows"] == 12
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, (int, float)))
    saved = load_toml(out / "config.toml")
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        if value and isinstance(saved[name.replace("-", "_")], float):
            assert saved[name.replace("-", "_")] == float(value)
        elif value:
            assert str(saved[name.replace("-", "_")]) == value
    return "trained"


def fuzz(folder, count, seed=0):
    write_data(folder)
    rng, outcomes = random.Random(seed), {}
    for number in range(count):
        flags = drawn(rng)
        try:
            kind = outcome(folder, flags, number)
        except Exception as error:
            raise AssertionError(f"set {number}: {' '.join(flags)}: {error!r}") from error
        outcomes[kind] = outcomes.get(kind, 0) + 1
    return outcomes


@pytest.mark.skipif(INTERPRETING, reason="trains with the CPU kernels")
def test_random_sets_of_options(tmp_path):
    outcomes = fuzz(tmp_path, 60)
    assert {"trained", "refused", "argument"} <= outcomes.keys()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        print(fuzz(Path(made), int(sys.argv[1]), *map(int, sys.argv[2:])))
