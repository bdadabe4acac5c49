"""Random sets of options: a model with sound metrics, or one line that says what is wrong."""

import contextlib
import io
import json
import math
import os
import random
import shlex
from pathlib import Path

from sparse_xmc.app.cli import main
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.config_file import load_toml
from sparse_xmc.app.options import Entry, entries

CORPUS = Path(__file__).parent / "corpus" / "options.txt"  # sets that once went wrong, or nearly, one a line
_PLACES = {"train", "test", "out", "train_labels", "test_labels", "valid_labels", "config", "progress", "keep_stages"}
TAKEN = [entry for entry in entries(TrainingConfig) if entry.name not in _PLACES]
_NUMBERS = {
    "int": ["0", "1", "2", "3", "4", "7", "16", "33", "-1", "4294967295", "100000000000000000000", "1.5", "x", ""],
    "float": ["0", "0.1", "0.2", "0.5", "0.9", "1", "1.5", "-1", "nan", "inf", "1e-300", "1e300", "x"],
}
_SMALL = {"int": ["1", "2", "3", "4", "8"], "float": ["0.1", "0.2", "0.3", "0.5"]}
_TEXTS = {
    "valid": ["test.jsonl", "none.jsonl"],
    "test_filter": ["filter.txt", "test.jsonl"],
    "from_": ["base", "run", "none"],
    "text_field": ["text", "text,text", "labels", "nothing", ","],
    "label_field": ["labels", "text", "nothing"],
    "label_separator": ["tab", ";", "none", ""],
    "transformer": ["", "./none"],
    "char_ngrams": ["2-3", "1-1", "3", "0-2", "9-3", "2-32", "2-33"],
    "device": ["cpu", "cuda", "cuda:7", "gpu"],
}
_UNCLEAR = ("Traceback", "object has no attribute", "must match", "NoneType", "<class ", "broadcast")


def write_data(folder: Path) -> None:
    """A split to train on and one to test on, and a filter of pairs."""
    rng = random.Random(0)
    for name, rows in (("train", 40), ("test", 12)):
        lines = []
        for _ in range(rows):
            words = rng.sample(range(16), 4)
            text = " ".join(f"word{word}" for word in words)
            lines.append(json.dumps({"text": text, "labels": [word for word in words if word < 8]}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "filter.txt").write_text("0 1\n3 2\n")


def drawn(rng: random.Random) -> list[str]:
    """Up to four options, mostly of small values that are allowed; mostly with the flags that a quick run needs."""
    flags: dict[str, str | None] = {"epochs": "1", "batch_size": "16"} if rng.random() < 0.6 else {"effort": "fast"}
    for entry in rng.sample(TAKEN, rng.randint(1, 4)):
        flags[entry.name] = _value(rng, entry)
    result = []
    for name, value in flags.items():
        flag = name.rstrip("_").replace("_", "-")
        result += [f"--no-{flag}" if rng.random() < 0.5 else f"--{flag}"] if value is None else [f"--{flag}={value}"]
    return result


def _value(rng: random.Random, entry: Entry) -> str | None:
    if entry.kind == "bool":
        return None
    if entry.option.choices:
        return str(rng.choice([*entry.option.choices, *entry.option.choices, "none of these"]))
    if entry.name in _TEXTS:
        return rng.choice(_TEXTS[entry.name])
    return rng.choice((_SMALL if rng.random() < 0.7 else _NUMBERS)[entry.kind])


def run(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    """A command in a folder: its status and what it says on standard error, but for the announcement of a first use."""
    errors = io.StringIO()
    before = os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = main(list(arguments))
    except SystemExit as ended:
        assert isinstance(ended.code, int), ended.code
        status = ended.code
    finally:
        os.chdir(before)
    return status, [line for line in errors.getvalue().splitlines() if "compiling kernels" not in line]


def outcome(folder: Path, flags: list[str]) -> str:
    """What a training with these flags comes to.

    Raises:
        AssertionError: it is neither a model with sound metrics nor one line that says what is wrong.
    """
    files = ("--train", "train.jsonl", "--test", "test.jsonl", "--out", "run")
    status, lines = run(folder, "train", *files, "--no-progress", "--threads=1", *flags)
    if status == 2:  # argparse: a value of another type
        assert any("error: argument" in line for line in lines), lines
        return "argument"
    if status:
        assert status == 1 and len(lines) == 1 and lines[0].startswith("sparse_xmc: "), lines
        assert not any(word in lines[0] for word in _UNCLEAR) and len(lines[0]) < 500, lines
        return "stopped" if (folder / "run" / "identity.json").exists() else "refused"
    assert not lines, lines
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert metrics["rows"] == 12
    assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, (int, float)))
    _check_saved(flags, load_toml(folder / "run" / "config.toml"))
    assert run(folder, "predict", "run", "--input", "test.jsonl", "--out", "out.jsonl", "--no-progress")[0] == 0
    predictions = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(predictions) == 12 and all(0 <= score <= 1 for row in predictions for score in row["scores"])
    return "trained"


def _check_saved(flags: list[str], saved: dict[str, object]) -> None:
    """Compares the configuration that was written with the flags that were given."""
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        name = "from_" if name == "from" else name.replace("-", "_")
        if value and isinstance(saved[name], float):
            assert saved[name] == float(value), (flag, saved[name])
        elif value and isinstance(saved[name], list):
            assert saved[name] == [part for part in value.split(",") if part], (flag, saved[name])
        elif value and flag != "--solver=auto":  # of which the one that was taken is written
            assert str(saved[name]) == value, (flag, saved[name])


def options(rng: random.Random, folder: Path) -> str:
    """One set, and a model beside it to begin from where the set asks for one."""
    return tried(drawn(rng), folder)


def tried(flags: list[str], folder: Path) -> str:
    """The outcome of a set of options; an error says which set it was."""
    write_data(folder)
    try:
        if "--from=base" in flags:
            files = ("--train", "train.jsonl", "--out", "base", "--no-progress")
            assert run(folder, "train", *files, "--min-df=1", "--effort=fast") == (0, [])
        return outcome(folder, flags)
    except Exception as error:
        raise AssertionError(f"{shlex.join(flags)}: {type(error).__name__}: {error}") from error


def corpus() -> list[list[str]]:
    """The sets of the corpus."""
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


TARGETS = {"options": options}
