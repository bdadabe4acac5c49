"""``train --from``: a model goes on with more data; its labels stay, new ones are learned, and nothing is taken for granted."""

import json
import random

import numpy as np
import pytest
import torch

import sparse_xmc
from sparse_xmc.app.bundle import Bundle
from sparse_xmc.app.cli import main
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="solves with the CPU kernels")
OLD, NEW = range(12), range(12, 15)
GRADIENT = {"embedding_dim": 16, "lexical_fan_in": 8, "fan_in": 8, "epochs": 6, "batch_size": 16, "min_df": 1}


def write(path, labels, rows=400, seed=0):
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(rows):
            own = {labels[i % len(labels)], rng.choice(labels)}
            words = [f"w{label}x{rng.randrange(4)}" for label in own for _ in range(4)] + [
                f"f{rng.randrange(300)}",
                "all",
            ]
            file.write(json.dumps({"text": " ".join(words), "labels": [f"L{label}" for label in own]}) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("from")
    write(path / "old.jsonl", OLD)  # and rare labels, which have fewer connections
    write(path / "new.jsonl", NEW, 90, seed=1)
    for name, rare in (("old", "rare"), ("new", "late")):
        with open(path / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write(write_rows(rare, f"w{rare} all", 4))
    with open(path / "all.jsonl", "w", encoding="utf-8") as file:
        file.write((path / "old.jsonl").read_text() + (path / "new.jsonl").read_text())
    write(path / "test.jsonl", [*OLD, *NEW], 150, seed=2)
    train(path, "direct", train="old.jsonl", min_df=1)
    train(path, "gradient", train="old.jsonl", **GRADIENT)
    return path


def train(folder, out, **options):
    for name in ("train", "test", "valid", "from_"):
        if name in options:
            options[name] = str(folder / options[name])
    lines = []
    options = {"progress": False, "threads": 1, **options}
    metrics = sparse_xmc.train(out=str(folder / out), report=lines.append, **options)
    return metrics, lines


def scores(bundle, folder, name="test.jsonl"):
    from sparse_xmc.app.splits import open_data

    split = open_data(bundle.config, str(folder / name), None, texts=True)
    return np.concatenate(list(bundle.all_scores(bundle.preparation.transform(split)[0])))


@pytest.mark.parametrize("data", ["all.jsonl", "new.jsonl"])
def test_direct_model_learns_new_labels_and_words(folder, data):
    metrics, lines = train(folder, f"grown-{data}", train=data, test="test.jsonl", from_="direct")
    old, new = Bundle.load(folder / "direct"), Bundle.load(folder / f"grown-{data}")
    assert metrics["P@1"] > 95 and metrics["unseen label occurrences"] == 0
    assert new.vocabulary.names[:13] == old.vocabulary.names
    assert sorted(new.vocabulary.names[13:]) == ["L12", "L13", "L14", "late"]
    terms = len(old.preparation.state()[0]["terms"])
    assert new.preparation.state()[0]["terms"][:terms] == old.preparation.state()[0]["terms"]
    assert "w12x0" in new.preparation.state()[0]["terms"][terms:]
    # rows without a word that is new score as they did, bit for bit
    assert np.array_equal(scores(new, folder, "old.jsonl")[:, :13], scores(old, folder, "old.jsonl"))
    assert any("13 labels stay as they are, 0 have" in line for line in lines)
    assert new.num_train == (498 if data == "all.jsonl" else 404)
    assert (new.frequencies[:13] == old.frequencies).all() and (new.frequencies[13:16] > 20).all()
    sizes = [indices.shape for indices, _ in new.model.blocks]
    assert [labels for labels, _ in sizes] == [12, 1, 3, 1] and len({fan_in for _, fan_in in sizes}) == 1
    for label in ("late", "rare"):
        (found,) = sparse_xmc.load(folder / f"grown-{data}").predict([f"w{label}"], k=1)
        assert found[0][0] == label


def test_a_label_with_a_tenth_more_rows_is_solved_again_and_the_others_are_not(folder, tmp_path):
    again = tmp_path / "again.jsonl"
    again.write_text((folder / "old.jsonl").read_text() + write_rows("L3", "w3x9", 20))
    _, lines = train(folder, tmp_path / "run", train=again, from_="direct")
    assert any("12 labels stay as they are, 1 have a tenth more rows" in line for line in lines)
    old, new = Bundle.load(folder / "direct"), Bundle.load(tmp_path / "run")
    before, after = scores(old, folder, "old.jsonl"), scores(new, folder, "old.jsonl")
    changed = (before != after).any(0).tolist()
    assert [name for name, is_changed in zip(old.vocabulary.names, changed, strict=True) if is_changed] == ["L3"]
    (found,) = sparse_xmc.load(tmp_path / "run").predict(["w3x9 w3x9"], k=1)  # a word that it learned now
    assert found[0][0] == "L3"


def write_rows(label, text, count):
    return "".join(json.dumps({"text": text, "labels": [label]}) + "\n" for _ in range(count))


@pytest.mark.parametrize(
    "options", [{}, {"head": "head_tail", "lexical_fan_in": 0}, {"embedding_dim": 0, "group_size": 4}]
)
def test_gradient_model_goes_on(folder, tmp_path, options):
    shape = {**GRADIENT, **options}
    if not shape["embedding_dim"]:
        del shape["lexical_fan_in"]
    first = train(folder, tmp_path / "first", train="old.jsonl", **shape)
    assert first[0] == {}
    metrics, lines = train(
        folder,
        tmp_path / "second",
        train="all.jsonl",
        test="test.jsonl",
        from_=tmp_path / "first",
        epochs=6,
        batch_size=16,
    )
    old, new = Bundle.load(tmp_path / "first"), Bundle.load(tmp_path / "second")
    assert metrics["P@1"] > 80, metrics["P@1"]
    assert new.vocabulary.names[:13] == old.vocabulary.names and len(new.vocabulary) == 17
    for name in shape.keys() - {"epochs", "batch_size"}:
        assert getattr(new.config, name) == getattr(old.config, name)
    assert any("begins from a model of 13 labels: 4 new ones" in line for line in lines)


def test_gradient_run_that_was_stopped_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch):
    from sparse_xmc.app.trainer import Trainer

    options = {"train": "all.jsonl", "from_": "gradient", "epochs": 2, "batch_size": 64, "checkpoint_seconds": 0.0}
    train(folder, tmp_path / "whole", **options)
    step = Trainer.train_step

    def stopping(self, number):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "parts", **options)
    monkeypatch.undo()
    _, lines = train(folder, tmp_path / "parts", **options)
    assert any(line.startswith("resumed at step 5") for line in lines)
    whole, parts = (Bundle.load(tmp_path / name).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("run", ["direct", "gradient"])
def test_labels_that_the_data_lack_stay_unless_they_are_dropped(folder, tmp_path, run):
    options = {"train": "new.jsonl", "from_": run, **({"epochs": 1} if run == "gradient" else {})}
    train(folder, tmp_path / "kept", **options)
    assert len(Bundle.load(tmp_path / "kept").vocabulary) == 17
    with pytest.raises(ValueError, match=r"drop_labels=True leaves no label of .*: .*new.jsonl has none of them"):
        train(folder, tmp_path / "none", drop_labels=True, **options)
    few = tmp_path / "few.jsonl"
    rows = [line for line in (folder / "all.jsonl").read_text().splitlines(True) if '"L3"' in line or '"L13"' in line]
    few.write_text("".join(rows))
    names = {label for line in rows for label in json.loads(line)["labels"]}
    train(folder, tmp_path / "dropped", **{**options, "train": few}, drop_labels=True)
    bundle = Bundle.load(tmp_path / "dropped")
    assert set(bundle.vocabulary.names) == names and len(bundle.frequencies) == len(names)
    (found,) = sparse_xmc.load(tmp_path / "dropped").predict(["w3x0 w3x1 w3x2"], k=1)
    assert found[0][0] == "L3"


def test_features_are_gone_on_with(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 6, 300)
    x = np.eye(6, dtype=np.float32)[y] + 0.1 * rng.random((300, 6), dtype=np.float32)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "old.txt").write_text("".join(f"{min(label, 3)}\n" for label in y))
    (tmp_path / "all.txt").write_text("".join(f"{label}\n" for label in y))
    first = {"encoder": "features", "epochs": 4, "batch_size": 16}
    train(tmp_path, "a", train="x.npy", train_labels=str(tmp_path / "old.txt"), **first)
    more = {"from_": "a", "epochs": 8, "batch_size": 16}
    train(tmp_path, "b", train="x.npy", train_labels=str(tmp_path / "all.txt"), **more)
    assert Bundle.load(tmp_path / "b").vocabulary.names[4:] and Bundle.load(tmp_path / "b").num_features == 6
    best = sparse_xmc.load(tmp_path / "b").topk(x, k=1)[1][:, 0]
    names = np.array(sparse_xmc.load(tmp_path / "b").labels)
    assert (names[best] == y).mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "direct", "--min-df", "5"], "min_df=5 cannot be had from direct, whose model has 1: leave it out"),
        (["--from", "direct", "--solver", "gradient"], "solver='gradient' cannot be had from direct"),
        (["--from", "direct", "--epochs", "2"], "epochs=2 has no effect with solver='direct'"),
        (["--from", "gradient", "--fan-in", "4"], "fan_in=4 cannot be had from gradient, whose model has 8"),
        (["--from", "gradient", "--auxiliary-weight", "0.5"], "the auxiliary objective is for a model that begins"),
        (["--from", "nowhere"], "nowhere holds no trained model"),
        (["--drop-labels"], "drop_labels=True has no effect with from=None"),
        (["--from", "out"], "out holds no trained model"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(folder, options, message, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["train", "--train", "all.jsonl", "--out", "out", "--no-progress", *options]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and message in said[0], said
    assert not (folder / "out").exists()


def test_a_run_is_not_its_own_beginning_and_its_beginning_may_not_change(folder, tmp_path, capsys):
    shared = ["train", "--train", str(folder / "new.jsonl"), "--no-progress"]
    run, base = str(tmp_path / "run"), str(tmp_path / "base")
    assert main([*shared, "--from", str(folder / "direct"), "--out", str(folder / "direct")]) == 1
    assert "from and out are the same folder" in capsys.readouterr().err
    train(folder, base, train="old.jsonl", min_df=1)
    assert main([*shared, "--from", base, "--out", run]) == 0
    moved = tmp_path / "moved"
    (tmp_path / "base").rename(moved)
    assert main([*shared, "--from", str(moved), "--out", run]) == 0  # the same model, elsewhere
    assert "the run is finished" in capsys.readouterr().out
    assert main([*shared, "--out", run, "--min-df", "1"]) == 1
    assert "holds a run with other options (from)" in capsys.readouterr().err
    train(folder, base, train="all.jsonl", min_df=1)
    assert main([*shared, "--from", base, "--out", run]) == 1
    assert "have changed since the run" in capsys.readouterr().err
    assert main(["train", "--config", f"{run}/config.toml", "--from", str(moved), "--out", run]) == 0
