"""Models with sparse layers as ONNX programs: onnxruntime computes what they compute."""

import warnings

import pytest
import torch
from torch import nn

from sparse_xmc.models import FixedFanInLinear, HeadTailLinear, QuantizedFixedFanInLinear
from tests.conftest import INTERPRETING

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.skipif(INTERPRETING, reason="exports on the CPU")

D, L, K = 16, 41, 4
HEADS = {
    "fixed": lambda: FixedFanInLinear(D, L, K, seed=1, prior=2),
    "grouped": lambda: FixedFanInLinear(D, L, K, False, group_size=8, seed=1),
    "int32": lambda: nn.Sequential(nn.Linear(D, 70_000, bias=False), FixedFanInLinear(70_000, L, K, seed=1)),
    "head_tail": lambda: HeadTailLinear(D, L, K, num_head=5, group_size=4, seed=1),
    "quantized": lambda: QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(D, L, K, seed=1)),
}


@pytest.mark.parametrize("name", HEADS)
def test_onnxruntime_agrees(name, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), nn.ReLU(), HEADS[name]()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.randn(2, D),),
            tmp_path / "model.onnx",
            dynamo=True,
            opset_version=19 if name == "quantized" else 18,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        x = torch.randn(rows, D)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(y), model(x), rtol=1e-5, atol=1e-5)
