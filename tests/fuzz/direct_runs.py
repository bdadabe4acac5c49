"""Flipped bits in every file of a finished direct run, of its stages and of a token cache: the same result, or one line."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np

from sparse_xmc.app.cli import main
from sparse_xmc.data import TokenCache
from sparse_xmc.storage.checkpoint import read_arrays
from tests.fuzz.artefacts import check_one_line, files, flip, folder_of_rows, make_hostile, predict, run

_OPTIONS = ["--min-df", "1", "--effort", "fast", "--fan-in", "3", "--no-progress", "--threads", "1"]


def train(folder: Path, *more: str) -> list[str]:
    data = str(folder / "data.jsonl")
    return ["train", "--train", data, "--test", data, *_OPTIONS, "--out", str(folder / "run"), *more]


@functools.cache
def solved() -> Path:
    """A finished run with its stages beside its data and its predictions."""
    folder = folder_of_rows(24)
    status, said = run(train(folder, "--keep-stages"))
    assert status == 0, said
    assert run(predict(folder))[0] == 0
    return folder


def inspected(folder: Path) -> str:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        status = main(["inspect", str(folder / "run")])
    return shown.getvalue() if status == 0 else ""


def flipped_direct_run(rng: random.Random, folder: Path) -> None:
    """A bit of any file of a finished run is wrong: predictions and what ``inspect`` says are the same, or there is a line."""
    source = solved()
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "out.jsonl").unlink()
    flip(rng.choice(files(folder / "run")), rng)
    status, said = run(predict(folder))
    if status:
        check_one_line(status, said)
        assert not (folder / "out.jsonl").exists()
    else:
        assert (folder / "out.jsonl").read_bytes() == (source / "out.jsonl").read_bytes(), "other predictions"
    with contextlib.redirect_stderr(io.StringIO()):
        shown = inspected(folder)
    told = "has been changed since" in shown
    assert told or shown in ("", inspected(source).replace(str(source), str(folder))), shown


def flipped_stage(rng: random.Random, folder: Path) -> None:
    """A bit of any file of a run that has stages and no model is wrong: the same model in the end, or one line."""
    source = solved()
    shutil.copytree(source, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "run" / "model")
    for stage in sorted((folder / "run" / "checkpoints").iterdir())[1 + rng.randrange(9) :]:
        shutil.rmtree(stage)
    flip(rng.choice(files(folder / "run")), rng)
    status, said = run([word.replace(str(source), str(folder)) for word in train(folder, "--keep-stages")])
    if status:
        check_one_line(status, said)
        return
    found, expected = (read_arrays(str(place / "run" / "model"))[0]["model"] for place in (folder, source))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name


def hostile_direct_model(rng: random.Random, folder: Path) -> None:
    """Content of a direct run's model changed at random, with checksums that fit."""
    make_hostile(solved(), rng, folder)


@functools.cache
def tokens() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-tokens-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = random.Random(0)
    texts = [" ".join(str(rng.randrange(1000)) for _ in range(rng.randrange(20))) for _ in range(30)]
    TokenCache.build(
        folder / "cache", texts, lambda part: [[int(word) for word in text.split()] for text in part], 1000
    )
    return folder / "cache"


def flipped_tokens(rng: random.Random, folder: Path) -> None:
    """A bit of a token cache is wrong: the same tokens, or an error."""
    shutil.copytree(tokens(), folder / "cache")
    flip(rng.choice(files(folder / "cache")), rng)
    try:
        found = TokenCache(folder / "cache")
    except ValueError as error:
        assert "\n" not in str(error), error
        return
    whole = TokenCache(tokens())
    assert np.array_equal(found.ids, whole.ids) and np.array_equal(found.offsets, whole.offsets), "other tokens"


TARGETS = {
    "direct run flips": flipped_direct_run,
    "stage flips": flipped_stage,
    "hostile direct model": hostile_direct_model,
    "token cache flips": flipped_tokens,
}
