"""Ranks that differ, fail or fall silent: every process ends soon, with one line, and nothing false is written."""

import json
import random
import shutil
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("sklearn")

from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.sharding import TrainingRanks
from sparse_xmc.distributed.ranks import RankFailure, Ranks
from sparse_xmc.distributed.restarts import join
from sparse_xmc.storage.checkpoint import CheckpointStore, read_folder, write_folder
from sparse_xmc.storage.errors import ArtefactError
from sparse_xmc.storage.tensor_file import Block, Shards
from tests.distributed.processes import Rank, free_port, start

SMALL = ["--embedding-dim", "8", "--fan-in", "4", "--lexical-fan-in", "4", "--min-df", "1", "--batch-size", "16"]
SMALL += ["--no-progress", "--threads", "1", "--device", "cpu", "--no-svd-init"]


def write_rows(path: Path, texts: int = 0) -> None:
    rng = random.Random(0)
    rows = [sorted(rng.sample(range(12), 4)) for _ in range(40)]
    words = [" ".join(f"w{i}" for i in row) for row in rows]
    random.Random(texts).shuffle(words) if texts else None
    lines = [json.dumps({"text": t, "labels": row[:2]}) for t, row in zip(words, rows, strict=True)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("agreement")
    write_rows(folder / "train.jsonl")
    write_rows(folder / "texts.jsonl", texts=1)
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "order.jsonl").write_text("".join(reversed(lines)))
    return folder


def command(files, out, *more, data="train.jsonl"):
    return ["train", "--train", str(files / data), *SMALL, "--out", str(out), *more]


def check_refused(ranks, out, message, seconds=60):
    for rank in ranks:
        end = rank.end(seconds)
        assert end.status == 1 and len(end.lines) == 1 and message in end.lines[0], end
        assert "Traceback" not in end.rest
    assert not out.exists()


@pytest.mark.parametrize("data", ["texts.jsonl", "order.jsonl"])
def test_other_data_are_refused(files, tmp_path, data):
    out = tmp_path / "run"
    ranks = start(tmp_path, command(files, out), command(files, out, data=data))
    check_refused(ranks, out, "the ranks differ in training data")


def test_another_option_is_refused(files, tmp_path):
    out = tmp_path / "run"
    ranks = start(tmp_path, command(files, out), command(files, out, "--fan-in", "6"))
    check_refused(ranks, out, "the ranks differ in fan_in: 4 on rank 0, 6 on rank 1")


def test_the_first_cause_is_told_by_all(files, tmp_path):
    out = tmp_path / "run"
    ranks = start(tmp_path, command(files, out), command(files, out, data="none.jsonl"))
    check_refused(ranks, out, "none.jsonl: no such file")


def test_a_stopped_rank_ends_the_others(files, tmp_path):
    more = ["--epochs", "100000", "--timeout", "4"]
    first, second = start(tmp_path, *[command(files, tmp_path / "run", *more)] * 2)
    try:
        first.wait_for("head: ")
        second.stop()
        end = first.end(90)
        assert end.status == 1
        assert [line for line in end.lines if "rank 1 has given no sign of life for 4 s" in line] == end.lines[:1], end
    finally:
        first.kill()
        second.kill()


def test_a_rank_that_is_killed_ends_the_others(files, tmp_path):
    first, second = start(tmp_path, *[command(files, tmp_path / "run", "--epochs", "100000")] * 2)
    try:
        second.process.poll()
        first.wait_for("head: ")
        second.kill()
        end = first.end(90)
        assert end.status == 1 and len(end.lines) == 1 and "rank 0 of 2" in end.lines[0], end
    finally:
        first.kill()


def test_two_processes_of_one_rank(files, tmp_path):
    ranks = start(tmp_path, *[command(files, tmp_path / "run", "--timeout", "3")] * 2, ranks=[0, 0])
    for rank in ranks:
        end = rank.end(60)
        assert end.status == 1 and len(end.lines) == 1, end
        assert "rank 0 of 2" in end.lines[0], end


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "2"}, r"RANK must lie in \[0, WORLD_SIZE=2\), got 2"),
        ({"RANK": "-1"}, "RANK must lie in"),
        ({"RANK": "x"}, "RANK must be an integer, got 'x'"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT must be an integer"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR missing"),
    ],
)
def test_wrong_environments(monkeypatch, changes, message):
    places = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**places, **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        join(3.0)


def test_a_taken_port(files, tmp_path):
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", port))
        taken.listen()
        rank = Rank(0, 2, port, command(files, tmp_path / "run", "--timeout", "3"), tmp_path / "log")
        end = rank.end(60)
    assert end.status == 1 and len(end.lines) == 1, end
    assert f"rank 0 of 2 could not join the others at 127.0.0.1:{port}" in end.lines[0]


def differing() -> list[str]:
    ranks = TrainingRanks(Ranks(dist.group.WORLD, torch.device("cpu")))
    rank, said = ranks.ranks.rank, []
    cases = [{"seed": rank}, {"head_lr": 0.1 + rank}, {"loss": ("bce", "squared_hinge")[rank]}, {"epochs": 3 + rank}]
    cases += [{"rewire_fraction": 0.1 * rank}, {"dropout": 0.1 * rank}, {"batch_size": 8 + rank}, {"fused": bool(rank)}]
    for options in [*cases, {"threads": rank + 1, "train": str(rank)}]:
        try:
            ranks.check(TrainingConfig(out="x", **{"train": "y", **options}))
            said.append("")
        except ValueError as error:
            said.append(str(error))
    try:
        ranks.check(TrainingConfig(train="y"), overwrite=bool(rank))
    except ValueError as error:
        said.append(str(error))
    return said


def test_every_option_is_compared(pools):
    names = ["seed", "head_lr", "loss", "epochs", "rewire_fraction", "dropout", "batch_size", "fused", "", "overwrite"]
    for said in pools(2).run(differing):
        assert len(said) == len(names)
        for name, text in zip(names, said, strict=True):
            assert text.startswith(f"the ranks differ in {name}: ") if name else text == "", said


def failing_in_turn() -> list[str]:
    ranks = TrainingRanks(Ranks(dist.group.WORLD, torch.device("cpu")))
    said = []
    for guilty, in_turn in ((0, False), (1, False), (0, True), (1, True)):
        try:
            with ranks.together(), ranks.in_turn(in_turn):
                if ranks.ranks.rank == guilty:
                    raise ValueError(f"guilty {guilty}")
            said.append("nothing")
        except (ValueError, RankFailure) as error:
            said.append(f"{type(error).__name__} {error}")
    with ranks.together():
        said.append("fine")
    return said


def test_a_failure_of_one_rank_is_raised_on_all(pools):
    for rank, said in enumerate(pools(2).run(failing_in_turn)):
        for text, guilty in zip(said, (0, 1, 0, 1), strict=False):
            expected = (
                f"ValueError guilty {guilty}" if rank == guilty else f"RankFailure rank {guilty} of 2: guilty {guilty}"
            )
            assert text == expected
        assert said[-1] == "fine"


def shards(total: int) -> Shards:
    ranks = Ranks(dist.group.WORLD, torch.device("cpu"))
    half = total // 2
    rows = range(0, half) if ranks.rank == 0 else range(half, total)
    return Shards(ranks, {"head.": Block(rows, total)})


def own(spread: Shards, columns: int = 3) -> dict[str, dict[str, torch.Tensor]]:
    rows = spread.blocks["head."].rows
    whole = torch.arange(30.0).view(10, 3)[:, :columns]
    return {"model": {"head.weight": whole[rows.start : rows.stop].clone(), "bias": torch.ones(2)}}


def error_of(call) -> str:
    try:
        return str(call())
    except (ArtefactError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"


def writing(folder: str) -> list[str]:
    spread = shards(10)
    rank = spread.ranks.rank
    said = [error_of(lambda: write_folder(f"{folder}/fits", own(spread), {}, spread))]
    said.append(error_of(lambda: write_folder(f"{folder}/other width", own(spread, 3 - rank), {}, spread)))
    spoilt = own(spread)
    if rank:
        spoilt["model"]["head.weight"][0, 0] = float("nan")
    said.append(error_of(lambda: write_folder(f"{folder}/nan", spoilt, {}, spread)))
    said.append(error_of(lambda: write_folder("/proc/nowhere/x", own(spread), {}, spread)))
    return said


def test_nothing_false_is_published_and_all_ranks_hear_why(pools, tmp_path):
    for said in pools(2).run(writing, str(tmp_path)):
        assert said[0] == "None"
        assert "blocks" in said[1] and "do not fit" in said[1]
        assert said[2].startswith("FloatingPointError") and "head.weight holds NaN or infinity" in said[2]
        assert said[3].startswith("ArtefactError: could not write /proc/nowhere/x")
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]
    assert read_folder(str(tmp_path / "fits"))[0]["model"]["head.weight"].equal(torch.arange(30.0).view(10, 3))


def loading(folders: list[str]) -> list[object]:
    spread = shards(10)
    store = CheckpointStore(folders[spread.ranks.rank])
    store.shards = spread
    said: list[str] = []
    try:
        found = store.load_latest(said.append)
        return [None if found is None else found[0], *said]
    except ArtefactError as error:
        return [str(error), *said]


def test_all_ranks_go_on_from_the_same_checkpoint(pools, tmp_path):
    store = CheckpointStore(tmp_path / "a")
    for step in (8, 9):
        store.save(step, {"model": {"head.weight": torch.full((10, 3), float(step))}}, {})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    weights = tmp_path / "b" / "step-0000000009" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    for found in pools(2).run(loading, folders):
        assert found[0] == 8 and len(found) == 2
        assert "checkpoint of step 9 passed over: rank 1: " in found[1] and "is damaged" in found[1]
    (tmp_path / "none").mkdir()
    for found in pools(2).run(loading, [folders[0], str(tmp_path / "none")]):
        assert "no intact checkpoint in" in found[0] and "rank 1: " in found[0]
    CheckpointStore(tmp_path / "c").save(9, {"model": {"head.weight": torch.zeros(10, 3)}}, {})
    for found in pools(2).run(loading, [folders[0], str(tmp_path / "c")]):
        assert "the ranks see different files in" in found[0]
