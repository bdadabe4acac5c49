"""What commit c9e8101 wrote is read by today's code: runs go on, models predict, programs and checkpoints load."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparse_xmc import ops  # noqa: F401  registers the operators of exported programs
from sparse_xmc.app.cli import main
from sparse_xmc.distributed import checkpoint
from sparse_xmc.models import FixedFanInLinear, HeadTailLinear, QuantizedFixedFanInLinear
from sparse_xmc.optim import FusedAdam
from tests.artefacts.write import FEATURE_RUNS, RUN, batch, targets

OLD = Path(__file__).parent / "artefacts"
CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # another processor may sum in another order


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("train.jsonl", "test.jsonl"):
        shutil.copy(OLD / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_that_was_interrupted_goes_on_and_ends_as_it_would_have(folder, capsys):
    shutil.copytree(OLD / "interrupted", folder / "run")
    assert main(RUN.split()) == 0
    assert "resumed at step 4 of 9" in capsys.readouterr().out
    found, wanted = (load_file(path / "model" / "model.safetensors") for path in (folder / "run", OLD / "finished"))
    assert wanted.keys() == found.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, **CLOSE)


@pytest.mark.parametrize("name, data", [("words", "words.jsonl"), ("counts", "counts.txt")])
def test_a_run_on_features_that_are_made_otherwise_today_goes_on_with_its_own(name, data, folder, capsys):
    """Text in scripts without spaces is cut today, counts grow with their logarithm."""
    shutil.copy(OLD / data, folder)
    shutil.copytree(OLD / f"{name}_interrupted", folder / "run")
    early = json.loads((folder / "run" / "identity.json").read_text())
    assert main(FEATURE_RUNS[name].split()) == 0
    assert "resumed at step 4 of 9" in capsys.readouterr().out
    found = load_file(folder / "run" / "model" / "model.safetensors")
    wanted = load_file(OLD / f"{name}_finished.safetensors")
    assert wanted.keys() == found.keys()
    for key, tensor in wanted.items():
        torch.testing.assert_close(found[key], tensor, **CLOSE)
    again = json.loads((folder / "run" / "identity.json").read_text())
    assert again["training data"] == early["training data"]
    shutil.rmtree(folder / "run" / "model")
    assert main(FEATURE_RUNS[name].split()) == 0  # it stays a run of that version
    assert main([*FEATURE_RUNS[name].split(), "--overwrite"]) == 0  # which a new one is not
    assert json.loads((folder / "run" / "identity.json").read_text())["training data"] != early["training data"]


def test_a_finished_run_is_evaluated_and_predicts(folder):
    shutil.copytree(OLD / "finished", folder / "run")
    before = json.loads((OLD / "finished" / "metrics.json").read_text())
    assert main(["evaluate", "run", "--test", "test.jsonl", "--no-progress"]) == 0
    after = json.loads((folder / "run" / "metrics.json").read_text())
    for name in ("P@1", "P@3", "P@5"):
        assert after[name] == pytest.approx(before[name])
    assert main(["predict", "run", "--input", "test.jsonl", "--k", "1", "--out", "p.jsonl", "--no-progress"]) == 0
    given = [json.loads(line)["labels"] for line in (folder / "test.jsonl").read_text().splitlines()]
    best = [json.loads(line)["labels"][0] for line in (folder / "p.jsonl").read_text().splitlines()]
    assert all(label in labels for label, labels in zip(best, given, strict=True))


def test_layers_load_and_compute_what_they_computed():
    old = torch.load(OLD / "layers.pt")
    layers = {
        "fixed": FixedFanInLinear(12, 10, 3),
        "grouped": FixedFanInLinear(12, 10, 3, group_size=4, dtype=torch.bfloat16),
        "head_tail": HeadTailLinear(12, 10, 3, num_head=2),
        "quantized": QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(12, 10, 3)),
    }
    for name, layer in layers.items():
        layer.load_state_dict(old["layers"][name])
        dtype = old["outputs"][name].dtype
        torch.testing.assert_close(layer(batch().to(dtype)), old["outputs"][name], **CLOSE)


def test_a_fused_optimizer_goes_on_from_its_state():
    first, second = torch.load(OLD / "layers.pt")["fused"]
    head, optimizer = FixedFanInLinear(12, 10, 3), FusedAdam(0.1, momentum=0.5)
    head.fuse_optimizer(optimizer)
    head.load_state_dict(first["head"])
    optimizer.load_state_dict(first["optimizer"])
    head.step(batch(), targets())
    for name, tensor in second["head"].items():
        torch.testing.assert_close(head.state_dict()[name], tensor, **CLOSE)
    state = optimizer.state_dict()["state"]
    for index, entries in second["optimizer"]["state"].items():
        for name, tensor in entries.items():
            torch.testing.assert_close(state[index][name], tensor, **CLOSE)


def test_an_exported_program_finds_its_operators():
    program = torch.export.load(OLD / "program.pt2")
    outputs = program.module()(batch(), torch.tensor([0, 2, 3, 3, 5]), torch.tensor([1, 7, 0, 3, 9]))
    for output, wanted in zip(outputs, torch.load(OLD / "program_outputs.pt"), strict=True):
        torch.testing.assert_close(output, wanted, **CLOSE)


def test_a_sharded_checkpoint_loads(tmp_path):
    shutil.copytree(OLD / "sharded", tmp_path / "sharded")
    model = torch.nn.Sequential(torch.nn.Linear(6, 12), FixedFanInLinear(12, 10, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    newest = checkpoint.latest(tmp_path / "sharded")
    assert newest == os.path.join(tmp_path, "sharded", "step-0000000007")
    assert checkpoint.load(newest, model, {"adam": optimizer}) == {"epoch": 3}
    old = torch.load(OLD / "sharded_states.pt")
    for name, tensor in old["model"].items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)
    assert optimizer.param_groups[0]["lr"] == 0.01
    for state, moment in zip(optimizer.state.values(), old["moments"], strict=True):
        torch.testing.assert_close(state["exp_avg"], moment, rtol=0, atol=0)


def test_a_run_goes_on_from_an_old_model(folder, capsys):
    shared = ["--train", str(OLD / "train.jsonl"), "--epochs", "1", "--no-progress", "--threads", "1"]
    assert main(["train", "--from", str(OLD / "finished"), "--out", str(folder / "on"), *shared]) == 0
    assert "begins from a model of 10 labels: 0 new ones" in capsys.readouterr().out
