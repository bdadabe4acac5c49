"""Runs of the direct solver through the command line."""

import json
import os
import random

import numpy as np
import pytest
import torch

from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.config import TrainingConfig
from sparse_xmc.app.direct.options import GRADIENT, settled
from sparse_xmc.app.direct.stages import StageFolder
from sparse_xmc.app.jobs import train
from sparse_xmc.models.term_blocks import TermBlocks
from sparse_xmc.solver.head import Block, TermHead
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="solves with the CPU kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("direct"), random.Random(0)
    for name, rows in (("train", 500), ("test", 60)):
        with open(path / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(rows):
                labels = rng.sample(range(15), rng.choice((1, 2)))
                words = [f"w{label}x{rng.randrange(5)}" for label in labels for _ in range(3)] + ["all"]
                file.write(json.dumps({"text": " ".join(words), "labels": [f"L{label}" for label in labels]}) + "\n")
    return path


def config(folder, out, **options):
    files = {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")}
    return TrainingConfig(**files, out=str(folder / out), progress=False, **options)


def test_default_run_solves_says_what_it_chose_and_leaves_no_stages(folder):
    lines = []
    metrics = train(config(folder, "a"), report=lines.append)
    assert metrics["P@1"] > 90
    assert [line.split()[0] for line in lines if line.startswith(("chosen", "tried", "refitted"))] == [
        "chosen", "tried", "refitted",
    ]  # fmt: skip
    assert not os.path.exists(folder / "a" / "checkpoints")
    again = []
    assert train(config(folder, "a"), report=again.append)["P@1"] == metrics["P@1"]
    assert any("the run is finished" in line for line in again)
    head = Bundle.load(folder / "a").model.head
    assert isinstance(head, TermBlocks) and head.out_features == 15


class _Killed(BaseException):
    pass


def test_killed_run_goes_on_with_the_next_stage_to_the_same_model(folder, monkeypatch):
    train(config(folder, "whole", keep_stages=True), report=lambda line: None)
    made, call = [], StageFolder.__call__

    def stop(self, name, work):
        def once():
            made.append(name)
            if len(made) == 3:
                raise _Killed
            return work()

        return call(self, name, once)

    monkeypatch.setattr(StageFolder, "__call__", stop)
    with pytest.raises(_Killed):
        train(config(folder, "killed"), report=lambda line: None)
    lines = []
    train(config(folder, "killed"), report=lines.append)
    assert any("resumed behind stage 'shortlists'" in line for line in lines)
    assert made.count("shortlists") == 1
    whole, killed = (Bundle.load(folder / name).model.state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert os.path.isdir(folder / "whole" / "checkpoints")


def test_options_of_gradients_choose_gradients_and_are_refused_beside_the_direct_solver(folder, tmp_path):
    assert settled(config(folder, "none")).solver == "direct"
    assert settled(config(folder, "none", epochs=2)).solver == "gradient"
    assert settled(TrainingConfig(encoder="features")).solver == "auto"
    with pytest.raises(ValueError, match="epochs=2 has no effect with solver='direct'"):
        config(folder, "none", solver="direct", epochs=2)
    with pytest.raises(ValueError, match="solver='direct' runs in one process, got 2 ranks"):
        settled(config(folder, "none", solver="direct"), 2)
    with pytest.raises(ValueError, match="tail"):
        config(folder, "none", solver="gradient", tail=0.5)
    (tmp_path / "identity.json").write_text('{"epochs": 6}')
    assert settled(TrainingConfig(out=str(tmp_path))).solver == "gradient"
    assert set(GRADIENT) <= {name for name in TrainingConfig.__dataclass_fields__}


@pytest.mark.parametrize("options", [{"effort": "fast"}, {"effort": "best", "tail": 1.0}, {"fan_in": 7}])
def test_options_of_the_solver(folder, options):
    train(config(folder, f"{options}", **options), report=lambda line: None)
    head = Bundle.load(folder / f"{options}").model.head
    if "fan_in" in options:
        assert {fan_in for _, fan_in in head.sizes} == {7}


def test_memory_that_is_too_little_is_refused_before_the_folder_is_made(folder):
    with pytest.raises(ValueError, match="head memory of 50 bytes is too little for 15 labels: at least 180"):
        train(config(folder, "little", head_memory=50), report=lambda line: None)
    assert not os.path.exists(folder / "little")


def test_blocks_score_what_their_arrays_say_and_refuse_bad_indices():
    rng = np.random.default_rng(0)
    blocks = []
    for labels, fan_in in ((np.arange(3), 5), (np.arange(3, 9), 2)):
        indices = np.stack([rng.choice(11, fan_in, replace=False) for _ in labels]).astype(np.int32)
        blocks.append(Block(labels, indices, rng.integers(-3, 4, indices.shape).astype(np.float32)))
    head = TermBlocks.from_solution(TermHead(blocks[::-1], rng.integers(-2, 3, 9).astype(np.float32)), 11)
    x = torch.from_numpy(rng.integers(0, 3, (6, 11)).astype(np.float32))
    dense = torch.zeros(9, 11)
    for block in blocks:
        for label, indices, weight in zip(block.labels, block.indices, block.weight, strict=True):
            dense[label, torch.from_numpy(indices).long()] = torch.from_numpy(weight)
    expected = x @ dense.T + head.bias
    torch.testing.assert_close(head(x.to_sparse_csr()), expected)
    scores, labels = head.topk(x.to_sparse_csr(), 4)
    torch.testing.assert_close(scores, expected.sort(dim=1, descending=True, stable=True).values[:, :4])
    torch.testing.assert_close(expected.gather(1, labels), scores)
    head.validate()
    head.get_buffer("indices_1")[0, 1] = head.get_buffer("indices_1")[0, 0]
    with pytest.raises(ValueError, match="twice"):
        head.validate()
    with pytest.raises(ValueError, match="1 to 11 connections of each, got 2 labels of 12"):
        TermBlocks(11, [(2, 12)])
