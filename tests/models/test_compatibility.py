"""Layer class x framework feature: one table, of which docs/compatibility.md is a copy and every cell is run."""

import copy
import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sparse_xmc.models import (
    DenseLinear,
    FixedFanInLinear,
    HeadTailLinear,
    QuantizedFixedFanInLinear,
    SparseInputLinear,
)
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="frameworks, on the CPU kernels")
PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
D, L, K = 16, 40, 4

LAYERS: dict[str, Callable[..., Any]] = {
    "FixedFanInLinear": lambda **o: FixedFanInLinear(D, L, K, **o),
    "HeadTailLinear": lambda **o: HeadTailLinear(D, L, K, num_head=5, **o),
    "SparseInputLinear": lambda **o: SparseInputLinear(D, L, K, **o),
    "QuantizedFixedFanInLinear": lambda **o: (
        QuantizedFixedFanInLinear(D, L, K, **o)
        if o
        else QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(D, L, K, seed=1))
    ),
    "DenseLinear": lambda **o: DenseLinear(D, L, **o),
}


def inputs(layer: Any) -> torch.Tensor:
    x = torch.linspace(-1, 1, 3 * D).view(3, D)
    return x.to_sparse_csr() if isinstance(layer, SparseInputLinear) else x


def same(layer: Any, other: Any) -> None:
    with torch.no_grad():
        assert torch.equal(other(inputs(other)), layer(inputs(layer)))


def by_pickle(layer: Any) -> None:
    same(layer, pickle.loads(pickle.dumps(layer)))


def by_cloudpickle(layer: Any) -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    same(layer, pickle.loads(cloudpickle.dumps(layer)))


def by_joblib(layer: Any) -> None:
    joblib = pytest.importorskip("joblib")
    buffer = io.BytesIO()
    joblib.dump(layer, buffer)
    buffer.seek(0)
    same(layer, joblib.load(buffer))


def by_torch_save(layer: Any) -> None:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    same(layer, torch.load(buffer, weights_only=False))


def by_deepcopy(layer: Any) -> None:
    same(layer, copy.deepcopy(layer))


def state_of(layer: Any, state: dict[str, Any]) -> None:
    other = LAYERS[type(layer).__name__](device="meta").to_empty(device="cpu")
    other.load_state_dict(state)
    same(layer, other)


def state_by_pickle(layer: Any) -> None:
    state_of(layer, pickle.loads(pickle.dumps(layer.state_dict())))


def state_by_torch(layer: Any) -> None:
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    state_of(layer, torch.load(buffer, weights_only=True))


def state_by_safetensors(layer: Any) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state_of(layer, safetensors.load(safetensors.save(dict(layer.state_dict()))))


def by_assignment(layer: Any) -> None:
    other = LAYERS[type(layer).__name__](device="meta")
    other.load_state_dict(layer.state_dict(), assign=True)
    same(layer, other)


def by_copy(layer: Any) -> None:
    other = LAYERS[type(layer).__name__]()
    with torch.no_grad():
        for ours, theirs in zip(other.state_dict().values(), layer.state_dict().values(), strict=True):
            ours.copy_(theirs)
    same(layer, other)


def emptied(layer: Any) -> None:
    other = LAYERS[type(layer).__name__](device="meta").to_empty(device="cpu")
    other(inputs(other))


def casts(layer: Any) -> None:
    layer.half().type(torch.float64).to(torch.float32)
    assert layer(inputs(layer)).isfinite().all()


def compiled(layer: Any) -> None:
    torch._dynamo.reset()
    program = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(program(inputs(layer)), layer(inputs(layer)))


def exported(layer: Any) -> None:
    with torch.no_grad():
        program = torch.export.export(layer, (inputs(layer),)).module()
        torch.testing.assert_close(program(inputs(layer)), layer(inputs(layer)))


def symbolically_traced(layer: Any) -> None:
    program = torch.fx.symbolic_trace(layer)
    torch.testing.assert_close(program(inputs(layer)), layer(inputs(layer)))


def averaged(layer: Any) -> None:
    average = AveragedModel(layer)
    average.update_parameters(layer)
    average.update_parameters(layer)
    same(layer, average.module)


def trained(layer: Any) -> None:
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer.loss(inputs(layer), [[1], [2, 3], []]).backward()
    optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(before, layer.parameters(), strict=True))


def under_autocast(layer: Any) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        dtype = layer(inputs(layer)).dtype
        assert dtype == torch.bfloat16, str(dtype)


def in_a_model(layer: Any) -> None:
    x = torch.randn(3, 8)
    nn.Sequential(nn.Linear(8, D), layer)(x).sum().backward()


YES = "yes"
UNWRITTEN = "RuntimeError: uninitialised memory"
# a feature: what happens for every layer, and the layers for which it is something else
FEATURES: dict[str, tuple[Callable[[Any], None], str, dict[str, str]]] = {
    "pickle": (by_pickle, YES, {}),
    "cloudpickle": (by_cloudpickle, YES, {}),
    "joblib": (by_joblib, YES, {}),
    "torch.save": (by_torch_save, YES, {}),
    "copy.deepcopy": (by_deepcopy, YES, {}),
    "state dict through pickle": (state_by_pickle, YES, {}),
    "state dict through torch.save": (state_by_torch, YES, {}),
    "state dict through safetensors": (state_by_safetensors, YES, {}),
    "load_state_dict(assign=True)": (by_assignment, YES, {}),
    "copy_ of every tensor": (by_copy, YES, {}),
    "use after to_empty": (emptied, UNWRITTEN, {"DenseLinear": "not told, as nn.Linear"}),
    "half, type, to": (casts, YES, {}),
    "torch.compile(fullgraph=True)": (
        compiled,
        YES,
        {"SparseInputLinear": "Unsupported: does not support sparse Tensors"},
    ),
    "torch.export": (exported, YES, {}),
    "torch.fx.symbolic_trace": (
        symbolically_traced,
        "TypeError: x must be a torch.Tensor, got Proxy",
        {"DenseLinear": YES},
    ),
    "AveragedModel": (averaged, YES, {"QuantizedFixedFanInLinear": "RuntimeError: nested_tensorlist"}),
    "loss and torch.optim": (
        trained,
        YES,
        {"QuantizedFixedFanInLinear": "ValueError: optimizer got an empty parameter list"},
    ),
    "autocast": (under_autocast, YES, {"SparseInputLinear": "no: the result is float32"}),
    "gradient of the input": (
        in_a_model,
        YES,
        {
            "QuantizedFixedFanInLinear": "RuntimeError: 8-bit weights serve inference only",
        },
    ),
}


def expected(feature: str, layer: str) -> str:
    _, usual, others = FEATURES[feature]
    return others.get(layer, usual)


WRAPPERS = [
    ("`DistributedDataParallel`, defaults", "works; all ranks read rank 0's connections"),
    (
        "`fully_shard` (FSDP2) of the model or the layer",
        "works, also from meta, with mixed precision, with `torch.distributed.checkpoint`; all ranks read rank 0's connections",
    ),
    (
        "the same on a mesh of two dimensions (HSDP)",
        "works; the replicas' weights must start alike, as those of any module",
    ),
    (
        "its `loss`, `topk`, `rewire_`, `to_dense` outside a sharded module's forward",
        'TypeError: weight is a DTensor; `register_fsdp_forward_method(layer, "loss")` makes one a forward',
    ),
    (
        "`fully_shard(..., ignored_params=set(head.parameters()))`",
        "works; summing the head's gradients is left to you",
    ),
    ("`FullyShardedDataParallel` (FSDP1)", "works; `rewire_` within `summon_full_params`"),
    ("parameters as views of a flat buffer (ZeRO 1 and 2, Megatron)", "works"),
    (
        "parameters emptied outside their gathering (ZeRO 3)",
        "ValueError: weight must be [out_features, fan_in], got shape [0]",
    ),
    ("`add_labels_`, `remove_labels_` under any of these", "RuntimeError: change labels before the model is wrapped"),
    ("fused optimizers under any of these", "RuntimeError: use one of torch.optim, or LabelShardedLinear"),
    ("`LabelShardedLinear` inside any of these", "RuntimeError: leave the head out"),
    ("`parallelize_module`", "NotImplementedError of torch; spread labels by `distributed.LabelShardedLinear`"),
    ("`distribute_module`", "TypeError: LabelShardedLinear spreads labels"),
    (
        "`StateDictOptions(broadcast_from_rank0=True)`",
        "RuntimeError of torch: gloo sends no 16-bit integers; let every rank read the file",
    ),
]


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page() -> str:
    rows = [["", *(f"`{name}`" for name in LAYERS)], ["---"] * (1 + len(LAYERS))]
    rows += [[feature, *(expected(feature, layer) for layer in LAYERS)] for feature in FEATURES]
    table = _markdown(rows)
    wrappers = _markdown([("wrapper", "what happens"), ("---", "---"), *WRAPPERS])
    return f"""# Frameworks and formats

What works (yes), or the error that is raised. Every cell of this table is run by `tests/models/test_compatibility.py`, which
holds it; the one cell that begins with "not" is a statement. An 8-bit layer has no parameters, so there is nothing to train or
average.

{table}

Tested elsewhere: `from_pretrained` and `save_pretrained` (`tests/models/test_pretrained.py`); ONNX
(`tests/models/test_onnx.py`); averages over a rewire, which raise at their first use unless `models.update_average_` makes
them (`tests/models/test_checked_indices.py`); Trainer, Lightning, accelerate and Sentence Transformers (`examples/`);
parametrizations, pruning, default devices and dtypes, fake tensors, `functional_call` (`tests/models/test_other_code.py`).

torch cannot read 16-bit integers that `torch.save(..., _use_new_zipfile_serialization=False)` wrote; its default format is
fine. `torch.jit.trace` makes a program that can be saved under `torch.no_grad()`.

## Several processes

{wrappers}

Tested on CPUs with gloo, two and four ranks (`tests/distributed/test_replicas.py`, `test_fully_sharded.py`); no GPU was
tried. A head that is too large for one device, or that is rewired while it is sharded, is `distributed.LabelShardedLinear`:
wrap the encoder, and leave the head out.

## Edits that nobody counts

Layers validate their connections again when torch's version counter, the tensor or its address changed. Writes through
`indices.data[...]` or NumPy change none of them: call `layer.validate()` after such an edit, or run with `SPARSE_XMC_DEBUG=1`,
which validates at every call. A program that `torch.compile` has traced is not checked again when indices are edited in place.

The versions that these tests run with stand in `constraints.txt`.
"""


def test_the_page_is_this_table():
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("feature", FEATURES)
def test_cell(feature, layer):
    outcome = expected(feature, layer)
    if outcome.startswith("not "):
        return
    act = FEATURES[feature][0]
    if outcome == "no: the result is float32":
        outcome = "AssertionError: float32"
    if outcome == YES:
        act(LAYERS[layer]())
        return
    kind, _, message = outcome.partition(": ")
    with pytest.raises(Exception, match=message) as caught:
        act(LAYERS[layer]())
    assert type(caught.value).__name__ == kind


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
