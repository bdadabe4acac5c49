"""The programs in examples/ run, and do what they say."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_xmc.models import FixedFanInLinear
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="programs for users, on the CPU kernels")
FOLDER = Path(__file__).parents[2] / "examples"


def program(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("head", ["fixed_fan_in", "dense"])
def test_next_item_learns_which_item_follows(tmp_path, head):
    generator = np.random.default_rng(0)
    lines = []
    for user in range(200):
        first = generator.integers(0, 60)
        items = [1 + (first + i) % 60 for i in range(8)]  # every item is followed by the next one
        lines.append(" ".join(map(str, [user + 1, *items])))
    data = tmp_path / "sequences.txt"
    data.write_text("\n".join(lines) + "\n")
    small = ["--features", "64", "--fan-in", "16", "--width", "32", "--length", "8", "--batch-size", "20"]
    result = program("next_item").main([str(data), "--head", head, "--epochs", "8", "--lr", "1e-2", *small])
    assert result["HR@10"] > 0.9
    assert result["head parameters"] == 61 * ((16 if head == "fixed_fan_in" else 64) + 1)


def test_next_item_counts_ties_and_nan_against_the_model():
    ranks_of = program("next_item").ranks_of
    answers, had = torch.tensor([2, 2, 2, 5, 2]), torch.tensor([[1, 3], [1, 3], [1, 3], [5, 0], [1, 3]])
    scores = torch.zeros(5, 8)
    scores[1] = float("nan")
    scores[2, [2, 4, 6]] = torch.tensor([2.0, 3.0, float("nan")])
    scores[3, 5] = 1.0  # the answer is one of the items that the user has had
    scores[4, 2], scores[4, 1] = 1.0, 9.0  # only an item that the user has had scores better
    assert ranks_of(scores, answers, had).tolist() == [4, 4, 2, 0, 0]


def test_next_item_of_a_model_that_fails_ends_in_one_line(tmp_path, capsys):
    data = tmp_path / "sequences.txt"
    data.write_text("".join(f"{user} 1 2 3 4 5\n" for user in range(30)))
    small = [
        "--features",
        "16",
        "--fan-in",
        "4",
        "--width",
        "8",
        "--length",
        "4",
        "--batch-size",
        "10",
        "--epochs",
        "3",
    ]
    with pytest.raises(SystemExit, match="the loss became .* choose a smaller --lr"):
        program("next_item").main([str(data), "--lr", "1e30", *small])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3 4 5\n2 7\n", "line 2: a user needs three items (training, validation, test), got 1"),
        ("1\n", "line 1: a user needs three items"),
        ("1 2 x 4\n", "line 1: items must be numbers from 1, got 'x'"),
        ("1 2 0 4\n", "line 1: items must be numbers from 1, got '0'"),
        ("1 2 -3 4\n", "got '-3'"),
        ("\n", "holds no users"),
        ("1 2 3 4\n", "no user with four items or more"),
    ],
)
def test_next_item_names_bad_data(tmp_path, capsys, text, message):
    data = tmp_path / "sequences.txt"
    data.write_text(text)
    with pytest.raises(SystemExit):
        program("next_item").main([str(data)])
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        program("next_item").main([str(tmp_path / "missing.txt")])
    assert "missing.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--sampling", "uniform", "--negatives", "20"], ["--sampling", "in_batch"], ["--tied", "--start", "cooccurrence"]],
)
def test_next_item_learns_with_options(tmp_path, options):
    generator = np.random.default_rng(0)
    data = tmp_path / "sequences.txt"
    starts = generator.integers(0, 60, 200)
    data.write_text("".join(f"1 {' '.join(str(1 + (s + i) % 60) for i in range(8))}\n" for s in starts))
    small = ["--features", "64", "--fan-in", "16", "--width", "32", "--length", "8", "--batch-size", "20"]
    result = program("next_item").main([str(data), "--epochs", "8", "--lr", "5e-3", *small, *options])
    assert result["HR@10"] > 0.9


def recommender(**changes):
    torch.manual_seed(0)
    sizes = {"head": "fixed_fan_in", "fan_in": 6, "width": 8, "features": 24, "length": 7, "dropout": 0.3}
    return program("next_item").Recommender(30, **sizes | changes).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_next_item_states_are_those_of_each_row_alone(tied):
    pad, model = program("next_item").pad, recommender(tied=tied)
    rows = [list(range(1, 1 + n)) for n in (7, 1, 3, 3, 5, 2, 9, 4, 1)]
    with torch.no_grad():
        states = model.states(pad(rows, 7))
        for row, found in zip(rows, states, strict=True):
            n = min(7, len(row))
            x = model.embedding()[row[-7:]] + model.positions[:n]
            alone = model.encoder(x[None], mask=model.causal[:n, :n], is_causal=True)[0]
            torch.testing.assert_close(found[:n], alone)


@pytest.mark.parametrize("head", ["fixed_fan_in", "dense"])
def test_next_item_tied_reads_items_by_the_weights_of_the_head(head):
    model = recommender(tied=True, head=head)
    dense = model.head if head == "dense" else model.head.to_dense()
    vectors = model.embedding()
    torch.testing.assert_close(vectors, dense.weight @ model.items.weight)
    vectors.square().sum().backward()
    assert model.head.weight.grad.any(1).all() and model.items.weight.grad.any(1).all()


@pytest.mark.parametrize(
    "head, fan_in, error", [("dense", 0, 0.02), ("fixed_fan_in", 24, 0.02), ("fixed_fan_in", 6, 0.35)]
)
def test_next_item_tied_starts_at_given_vectors(head, fan_in, error):
    """To the ridge's precision where an item reads every feature, about where it reads 6 of 24 (at random: all is error)."""
    model, vectors = recommender(tied=True, head=head, fan_in=fan_in), torch.randn(31, 8)
    model.start_at_(vectors)
    with torch.no_grad():
        assert (model.embedding() - vectors).square().sum() < error * vectors.square().sum()
    untied = recommender()
    untied.start_at_(vectors)
    assert torch.equal(untied.embedding(), vectors)


def test_next_item_vectors_of_items_that_come_together_are_alike():
    generator = np.random.default_rng(0)
    training = [list(generator.choice(10, 5) + 1 + 10 * (user % 3)) for user in range(300)]  # three kinds of items
    vectors = program("next_item").cooccurrence_vectors(training, 30, 8)[1:]
    alike = (
        torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=2).reshape(3, 10, 3, 10).mean((1, 3))
    )
    assert (alike.diagonal() > 0.3).all() and (alike - alike.diagonal().diag() < 0.1).all()


def test_hf_trainer_learns():
    pytest.importorskip("accelerate")
    metrics = program("hf_trainer").main(["--labels", "400", "--steps", "40"])
    assert metrics["eval_P@1"] > 0.1  # chance: 0.005


def test_hf_trainer_on_two_ranks_saves_and_loads(tmp_path):
    pytest.importorskip("accelerate")
    arguments = [str(FOLDER / "hf_trainer.py"), "--labels", "400", "--steps", "30", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = subprocess.run(
        command,
        cwd=FOLDER.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "eval_P@1" in done.stdout and (tmp_path / "model.safetensors").exists()


def test_plain_loop_learns():
    assert program("plain_loop").main(["--steps", "40"]) > 0.9


def test_accelerate_loop_learns():
    pytest.importorskip("accelerate")
    assert program("accelerate_loop").main([]) > 0.9


def test_sentence_head_learns_and_comes_back(tmp_path):
    pytest.importorskip("sentence_transformers")
    assert program("sentence_head").main(["--steps", "80", "--out", str(tmp_path / "tagger")]) > 0.9


def test_lightning_module_learns_fused_and_not(tmp_path):
    """Automatic and manual optimization of a fused head are one and the same training."""
    pytest.importorskip("lightning")
    small = ["--labels", "200", "--steps", "60"]
    module = program("lightning_module")
    plain = module.main(small)
    fused = module.main([*small, "--fused", "--out", str(tmp_path / "model.ckpt")])
    manual = module.main([*small, "--fused", "--manual"])
    assert plain["P@1"] > 0.5 and fused["P@1"] > 0.5 and fused == manual
    saved = torch.load(tmp_path / "model.ckpt", weights_only=False)
    model = module.WideClassifier(200, fused=True, manual=False)
    model.load_state_dict(saved["state_dict"])
    model.configure_optimizers().load_state_dict(saved["optimizer_states"][0])


@pytest.mark.parametrize("group_size, bias, dtype", [(1, True, torch.float32), (16, False, torch.bfloat16)])
def test_serving_file_and_exports(tmp_path, group_size, bias, dtype):
    pytest.importorskip("scipy")
    serving = program("serving")
    head = FixedFanInLinear(40, 101, 7, group_size=group_size, bias=bias, dtype=dtype, seed=1)
    path = str(tmp_path / "head.safetensors")
    serving.save(head, path)
    loaded = serving.load(path)
    assert loaded.state_dict().keys() == head.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in head.state_dict().items())
    x = torch.randn(5, 40, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(serving.export(loaded).module()(x), head(x))
    if dtype == torch.float32:
        dense = serving.to_scipy(loaded).toarray()
        assert np.array_equal(dense, head.to_dense().weight.detach().numpy())


def test_serving_prints_latencies(tmp_path):
    path = str(tmp_path / "head.safetensors")
    table = program("serving").main(
        [path, "--new", "500", "--features", "32", "--fan-in", "4", "--repeats", "2", "--dense"]
    )
    assert len(table) == 6 and all(row["p50 ms"] > 0 for row in table.values())


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux tells it")
def test_measure_large_head_says_each_part():
    command = [sys.executable, "-m", "examples.measure_large_head", "--labels", "5000", "--steps", "2", "--checkpoint"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    parts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [part["part"] for part in parts] == ["made", "steps", "top-k", "checkpoint written", "checkpoint read"]
    assert parts[1]["last_loss"] < parts[1]["first_loss"] and all(part["peak_mib"] > 0 for part in parts)


def test_measure_memory_prints_a_row():
    place = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # 0: any free port
    command = [sys.executable, "-m", "examples.measure_memory", "--labels", "30000", "--features", "64"]
    done = subprocess.run(
        command, cwd=FOLDER.parent, env=os.environ | place, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    ranks, rank, held, _, trained, _ = (int(part) for part in done.stdout.split("|")[1:-1])
    assert (ranks, rank, held) == (1, 0, 6)
    assert trained < 100
