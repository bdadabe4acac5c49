"""Damaged and hostile artefacts: flipped bits in every file of a run and of a sharded checkpoint, wrong content with right
checksums. The same result as before or one line of error; nothing is written elsewhere."""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import io
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparse_xmc.app.cli import main
from sparse_xmc.distributed import checkpoint
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.storage.checkpoint import read_folder, write_folder
from sparse_xmc.storage.errors import ArtefactError

_OPTIONS = ["--embedding-dim", "4", "--fan-in", "2", "--lexical-fan-in", "2", "--min-df", "1", "--epochs", "2"]
_OPTIONS += ["--batch-size", "8", "--no-progress", "--threads", "1", "--device", "cpu", "--no-svd-init"]
_VALUES: list[Any] = [
    None,
    True,
    [],
    {},
    "",
    "../../x",
    "/etc/hostname",
    "x" * 500,
    -1,
    0,
    1,
    1 << 40,
    1 << 70,
    0.5,
    1e308,
]
_VALUES += [[[]] * 3, {"a": {}}, "nan", "inf", "transformer", "features", [1.5], ["a", "a"], "\ud800", "a\0b"]
_NAMES = ["files/../../x", "files//etc/x", "files/x.py", "head.weight", "idf", "more", "", "../x", "auxiliary.clusters"]


def run(command: list[str]) -> tuple[int, str]:
    """A command in this process: its status and what it wrote on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(command)
    torch.set_num_threads(1)
    return status, said.getvalue()


def check_one_line(status: int, said: str) -> None:
    assert status == 1, f"status {status}: {said}"
    assert said.startswith("sparse_xmc: ") and said.count("\n") == 1, said


def folder_of_rows(count: int) -> Path:
    """A folder, removed at exit, with texts and labels in data.jsonl."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = random.Random(0)
    with (folder / "data.jsonl").open("w") as file:
        for _ in range(count):
            words = rng.sample(range(8), 3)
            row = {"text": " ".join(f"w{word}" for word in words), "labels": [f"l{word}" for word in words]}
            file.write(json.dumps(row) + "\n")
    return folder


@functools.cache
def trained() -> Path:
    """A finished run beside its data and its predictions."""
    folder = folder_of_rows(16)
    status, said = run(train(folder))
    assert status == 0, said
    assert run(predict(folder))[0] == 0
    return folder


def train(folder: Path) -> list[str]:
    return ["train", "--train", str(folder / "data.jsonl"), *_OPTIONS, "--out", str(folder / "run")]


def predict(folder: Path) -> list[str]:
    command = [
        "predict",
        str(folder / "run"),
        "--input",
        str(folder / "data.jsonl"),
        "--out",
        str(folder / "out.jsonl"),
    ]
    return [*command, "--no-progress", "--device", "cpu", "--threads", "1"]


def flip(path: Path, rng: random.Random) -> None:
    """Turns one bit of a file over."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) * 8)
    content[at // 8] ^= 1 << at % 8
    path.write_bytes(content)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flipped_run_predicts(rng: random.Random, folder: Path) -> None:
    """A bit of the model, or of what says whose it is, is wrong: the same predictions or one line."""
    source = trained()
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "out.jsonl").unlink()
    flip(rng.choice([*files(folder / "run" / "model"), folder / "run" / "identity.json"]), rng)
    status, said = run(predict(folder))
    if status:
        check_one_line(status, said)
        assert not (folder / "out.jsonl").exists()
    else:
        assert (folder / "out.jsonl").read_bytes() == (source / "out.jsonl").read_bytes(), "other predictions"


def flipped_run_resumes(rng: random.Random, folder: Path) -> None:
    """A bit of any file of an interrupted run is wrong: the same model in the end, or one line."""
    source = trained()
    shutil.copytree(source, folder, dirs_exist_ok=True)
    if rng.random() < 0.5:
        shutil.rmtree(folder / "run" / "checkpoints" / "step-0000000004")
    identity = json.loads((folder / "run" / "identity.json").read_text())
    (folder / "run" / "identity.json").write_text(json.dumps(identity))
    flip(rng.choice(files(folder / "run")), rng)
    status, said = run(train(folder))
    if status:
        check_one_line(status, said)
        return
    found, expected = (read_folder(str(place / "run" / "model"))[0]["model"] for place in (folder, source))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def model_and_optimizer(seed: int) -> tuple[nn.Module, dict[str, torch.optim.Optimizer]]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), FixedFanInLinear(6, 20, 2, seed=seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, {"adam": optimizer}


@functools.cache
def saved() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-checkpoint-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    checkpoint.save(folder / "step-0000000001", *model_and_optimizer(1), {"step": 1})
    return folder / "step-0000000001"


def flipped_checkpoint(rng: random.Random, folder: Path) -> None:
    """A bit of a sharded checkpoint is wrong: always an error, and the model is as it was."""
    shutil.copytree(saved(), folder / "c")
    flip(rng.choice(files(folder / "c")), rng)
    model, optimizers = model_and_optimizer(2)
    before = copy.deepcopy(model.state_dict())
    try:
        checkpoint.load(folder / "c", model, optimizers)
    except ArtefactError:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        return
    raise AssertionError("damage was not seen")


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a document: what holds it, and its key there."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        found.append((value, key))
        found += _nodes(value[key])
    return found


def hostile_model(rng: random.Random, folder: Path) -> None:
    """Content of a model changed at random, with checksums that fit."""
    make_hostile(trained(), rng, folder)


def make_hostile(source: Path, rng: random.Random, folder: Path) -> None:
    """A copy of a finished run whose model is then changed: predictions or one line, and nothing else is written."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "out.jsonl").unlink()
    model = str(folder / "run" / "model")
    tensors, documents = read_folder(model)
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.6:
            place, key = rng.choice(_nodes(documents))
            action = rng.random()
            if action < 0.7:
                place[key] = copy.deepcopy(rng.choice(_VALUES))
            elif action < 0.85:
                del place[key]
            elif isinstance(place, list):
                place.append(copy.deepcopy(rng.choice(_VALUES)))
            else:
                place[str(rng.choice(_VALUES))] = rng.choice(_VALUES)
        else:
            group = rng.choice(list(tensors.values()))
            if group:
                _spoil(group, rng)
    with contextlib.suppress(ValueError, FloatingPointError, OSError, ArtefactError):
        write_folder(model, tensors, documents, finite=lambda stem, name: False)
    before = {str(path): path.read_bytes() for path in files(folder)}
    status, said = run(predict(folder))
    after = {str(path): path.read_bytes() for path in files(folder) if path.name != "out.jsonl"}
    assert after == before, "something else was written"
    if status:
        check_one_line(status, said)
    else:
        for line in (folder / "out.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=lambda name: (_ for _ in ()).throw(AssertionError(f"{name} is no JSON")))


def _spoil(group: dict[str, torch.Tensor], rng: random.Random) -> None:
    name = rng.choice(list(group))
    tensor = group[name]
    action = rng.randrange(5)
    if action == 0:
        del group[name]
    elif action == 1:
        group[rng.choice(_NAMES)] = tensor
    elif action == 2:
        group[name] = tensor[: rng.randint(0, 2)] if tensor.ndim else tensor[None]
    elif action == 3:
        group[name] = tensor.to(rng.choice([torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16]))
    elif tensor.numel():
        raw = tensor.contiguous().clone().view(-1).view(torch.uint8)
        raw[rng.randrange(len(raw))] = rng.choice([0, 0x7F, 0x80, 0xFF])
        group[name] = raw.view(tensor.dtype).view(tensor.shape)


TARGETS = {
    "model flips": flipped_run_predicts,
    "run flips": flipped_run_resumes,
    "sharded checkpoint flips": flipped_checkpoint,
    "hostile model": hostile_model,
}
