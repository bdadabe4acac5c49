"""The programs in examples/ run, and do what they say."""

import importlib.util
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


def test_hf_trainer_learns():
    pytest.importorskip("accelerate")
    metrics = program("hf_trainer").main(["--labels", "400", "--steps", "40"])
    assert metrics["eval_P@1"] > 0.1  # chance: 0.005


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
