"""No kernel reads connections that nobody validated, however they came about."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparse_xmc.models import (
    FixedFanInLinear,
    HeadTailLinear,
    QuantizedFixedFanInLinear,
    SparseInputLinear,
    update_average_,
)
from sparse_xmc.models.checked_indices import fingerprint
from tests.conftest import INTERPRETING

D, L, K = 40, 101, 8
UNWRITTEN = "uninitialised memory in"


def fixed(**options):
    return FixedFanInLinear(D, L, K, **options)


def grouped(**options):
    return FixedFanInLinear(D, L, K, group_size=16, bias=False, **options)


def wide(**options):
    return FixedFanInLinear(70_000, 7, 3, **options)


def terms(**options):
    return SparseInputLinear(D, L, K, **options)


def head_tail(**options):
    return HeadTailLinear(D, L, K, num_head=9, **options)


def quantized(**options):
    if options.get("device") == "meta":
        return QuantizedFixedFanInLinear(D, L, K, **options)
    return QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(D, L, K, **options))


MAKERS = [fixed, grouped, wide, terms, head_tail, quantized]
each_layer = pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)


def sparse_part(layer):
    """The module inside that holds the indices."""
    return layer.tail if isinstance(layer, HeadTailLinear) else layer


def inputs(layer, rows=3):
    x = torch.linspace(-1, 1, rows * layer.in_features).view(rows, -1)
    return x.to_sparse_csr() if isinstance(layer, SparseInputLinear) else x


def uses(layer):
    """Everything that reads the connections, by name."""
    x = inputs(layer)
    targets = (torch.tensor([0, 1, 1, 2]), torch.tensor([0, 3]))
    found = {"forward": lambda: layer(x), "topk": lambda: layer.topk(x, 2)}
    if hasattr(layer, "loss"):
        found["loss"] = lambda: layer.loss(x, targets)
    if hasattr(layer, "rewire_"):
        found["rewire_"] = lambda: layer.rewire_(fraction=0.2, seed=0)
    if hasattr(layer, "to_dense"):
        found["to_dense"] = layer.to_dense
    return found


def assert_refused(layer, error, message):
    for name, use in uses(layer).items():
        with pytest.raises(error, match=message):
            use()
            pytest.fail(f"{name} went through")


@each_layer
def test_memory_that_nobody_wrote_to_is_refused_until_it_is_drawn_or_loaded(make):
    source = make(seed=0)
    empty = make(device="meta").to_empty(device="cpu")
    assert_refused(empty, RuntimeError, UNWRITTEN)
    partial = {name: value for name, value in source.state_dict().items() if not name.endswith("weight")}
    empty.load_state_dict(partial, strict=False)
    if not isinstance(empty, HeadTailLinear):
        assert_refused(empty, RuntimeError, f"{UNWRITTEN} weight of this {type(source).__name__}")
    empty.load_state_dict(source.state_dict())
    assert torch.equal(empty(inputs(empty)), source(inputs(source)))
    again = make(device="meta").to_empty(device="cpu")
    for module in again.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert again(inputs(again)).isfinite().all()


@each_layer
def test_loading_by_assignment_into_a_layer_on_meta(make):
    source, target = make(seed=0), make(device="meta")
    target.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(target(inputs(target)), source(inputs(source)))


def test_skip_init_and_filling_by_hand():
    layer = nn.utils.skip_init(FixedFanInLinear, D, L, K)
    assert_refused(layer, RuntimeError, f"{UNWRITTEN} weight and bias and indices of this FixedFanInLinear")
    source = fixed(seed=0)
    with torch.no_grad():
        layer.weight.copy_(source.weight)
        layer.indices.copy_(source.indices)
    assert_refused(layer, RuntimeError, f"{UNWRITTEN} bias of this")
    nn.init.zeros_(layer.bias)
    assert torch.equal(layer(inputs(layer)), source(inputs(source)))


@pytest.mark.parametrize("change", [copy.deepcopy, copy.copy, lambda layer: layer.double()])
def test_emptiness_is_not_lost_on_the_way(change):
    assert_refused(change(fixed(device="meta").to_empty(device="cpu")).float(), RuntimeError, UNWRITTEN)


@each_layer
@pytest.mark.parametrize("bad", ["range", "twice"])
def test_edits_in_place_are_validated_once(make, bad, monkeypatch):
    layer = make(seed=0)
    part = sparse_part(layer)
    row = part.indices[2].clone()
    row[1] = part.in_features if bad == "range" else row[0]
    part.indices[2] = row
    message = rf"outside \[0, {part.in_features}\)" if bad == "range" else "holds .* twice"
    assert_refused(layer, ValueError, message)
    row[1] = next(i for i in range(part.in_features) if i not in row.tolist())
    part.indices[2] = row
    y = layer(inputs(layer))
    monkeypatch.setattr("sparse_xmc.models.checked_indices.validate_indices", lambda *_: pytest.fail("again"))
    assert torch.equal(layer(inputs(layer)), y)


@each_layer
@pytest.mark.parametrize("way", ["attribute", "buffer", "data", "functional"])
def test_other_tensors_in_their_place_are_validated(make, way):
    layer = make(seed=0)
    part = sparse_part(layer)
    layer(inputs(layer))
    bad = torch.zeros_like(part.indices)
    if way == "functional":
        name = "tail.indices" if part is not layer else "indices"
        with pytest.raises(ValueError, match="holds 0 twice"):
            torch.func.functional_call(layer, {name: bad}, (inputs(layer),))
        layer(inputs(layer))
        return
    if way == "attribute":
        part.indices = bad
    elif way == "buffer":
        part._buffers["indices"] = bad
    else:
        part.indices.data = bad
    assert_refused(layer, ValueError, "holds 0 twice")


def test_indices_of_another_dtype_are_refused():
    layer = fixed(seed=0)
    layer.indices = layer.indices.float()
    assert_refused(layer, TypeError, "indices must be of torch.uint16 or torch.int32, got torch.float32")


@each_layer
def test_what_the_layer_writes_itself_is_not_read_again(make, monkeypatch):
    layer = make(seed=0)
    layer.load_state_dict(make(seed=1).state_dict())
    monkeypatch.setattr("sparse_xmc.models.checked_indices.validate_indices", lambda *_: pytest.fail("again"))
    for use in uses(layer).values():
        use()
    for use in uses(layer).values():
        use()


@each_layer
def test_casts_leave_the_indices_alone(make):
    for cast in ("half", "double", "bfloat16", "float"):
        layer = make(seed=0)
        before = sparse_part(layer).indices
        getattr(layer, cast)()
        assert torch.equal(sparse_part(layer).indices, before) and sparse_part(layer).indices.dtype == before.dtype
    layer = make(seed=0)
    before = sparse_part(layer).indices
    layer.type(torch.float64)
    assert sparse_part(layer).indices is before
    layer.type(torch.float32)
    assert layer(inputs(layer)).isfinite().all()


@each_layer
def test_default_dtypes_and_devices(make):
    torch.set_default_dtype(torch.bfloat16)
    try:
        layer = make(seed=0)
    finally:
        torch.set_default_dtype(torch.float32)
    x = inputs(layer).to(torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16 and layer(x).isfinite().all()
    with torch.device("meta"):
        on_meta = make() if make is not quantized else QuantizedFixedFanInLinear(D, L, K)
    assert all(tensor.is_meta for tensor in on_meta.state_dict().values())
    if make is not terms:
        x = torch.empty(2, on_meta.in_features, device="meta")
        assert on_meta(x).shape == (2, on_meta.out_features) and on_meta(x).is_meta


def test_layers_made_in_inference_mode():
    with torch.inference_mode():
        layer = fixed(seed=0)
        y = layer(inputs(layer))
    with torch.no_grad():
        assert torch.equal(layer(inputs(layer)), y)


def test_fingerprints_see_order_and_value():
    indices = torch.arange(24).view(4, 6).to(torch.uint16)
    seen = {fingerprint(indices), fingerprint(indices[[1, 0, 2, 3]]), fingerprint(indices[:, [1, 0, 2, 3, 4, 5]])}
    for row, slot in itertools.product(range(4), range(6)):
        other = indices.clone()
        other[row, slot] = 999
        seen.add(fingerprint(other))
    assert len(seen) == 3 + 24 and fingerprint(indices.int()) == fingerprint(indices)


def drift(model, seed):
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def polyak(average, model, decay):
    for ours, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, 1 - decay)
        else:
            ours.copy_(theirs)


def arithmetic(average, model, decay):
    for ours, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        ours.copy_(decay * ours.float() + (1 - decay) * theirs.float())


class Averaged:
    """torch's ``AveragedModel``, called like the functions above."""

    def __init__(self, model, **options):
        self.inner = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), **options)
        self.inner.update_parameters(model)
        self.module = self.inner.module

    def __call__(self, average, model, decay):
        self.inner.update_parameters(model)


def start_average(kind, model):
    """An average of models that has seen one, and what makes it see another."""
    if kind in (polyak, arithmetic):
        return copy.deepcopy(model), kind
    update = Averaged(model, use_buffers=kind == "AveragedModel with buffers")
    return update.module, update


KINDS = [polyak, arithmetic, "AveragedModel", "AveragedModel with buffers"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "__name__", kind))
def test_averages_of_models_are_right_or_refused(kind):
    model = nn.Sequential(nn.Linear(6, D), fixed(seed=0))
    average, update = start_average(kind, model)
    expected = model[1].weight.detach().clone()
    for seed in range(3):
        drift(model, seed)
        update(average, model, 0.5)
        expected.lerp_(model[1].weight.detach(), 0.5)
    average(torch.randn(3, 6))  # one half of an index and one half of it are the index again
    assert torch.equal(average[1].indices, model[1].indices)
    torch.testing.assert_close(average[1].weight.detach(), expected)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "__name__", kind))
def test_an_average_over_a_rewire_is_refused(kind):
    model = fixed(seed=0)
    average, update = start_average(kind, model)
    model.rewire_(fraction=0.5, seed=1)
    update(average, model, 0.5)
    assert_refused(average, RuntimeError, "an average of models mixes the weights of different connections")
    average.load_state_dict(model.state_dict())
    assert torch.equal(average(inputs(average)), model(inputs(model)))


@pytest.mark.parametrize("make", [fixed, grouped, wide, head_tail], ids=lambda make: make.__name__)
def test_an_average_of_connections_that_change(make):
    model = make(seed=0)
    average = copy.deepcopy(model)
    part, mean = sparse_part(model), sparse_part(average)
    drift(model, 0)
    before, indices, old = mean.weight.detach().clone(), part.label_indices(), part.weight.detach().clone()
    part.rewire_(fraction=0.5, seed=1)
    update_average_(average, model, 0.75)
    kept = part.label_indices() == indices
    assert int((~kept).sum()) > 0 and int(kept.sum()) and torch.equal(part.weight[kept], old[kept])
    expected = torch.where(kept, 0.75 * before + 0.25 * part.weight.detach(), part.weight.detach())
    torch.testing.assert_close(mean.weight.detach(), expected)
    assert torch.equal(mean.indices, part.indices) and average(inputs(average)).isfinite().all()
    update_average_(average, model, 0.75)
    average(inputs(average))
    for bad in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
            update_average_(average, model, bad)
    with pytest.raises(ValueError, match="average must be built like model"):
        update_average_(average, nn.Sequential(model), 0.5)


def test_indices_that_arithmetic_has_shifted_are_refused():
    model = fixed(seed=0)
    average = copy.deepcopy(model)
    average.indices.copy_(average.indices.long().clamp(min=1) - 1)
    assert_refused(average, RuntimeError, "were overwritten in place")


def test_copies_may_be_trained_on_their_own():
    clone = copy.deepcopy(fixed(seed=0))
    clone.rewire_(fraction=0.5, seed=1)
    again = copy.deepcopy(clone)
    again.reset_parameters(3)
    grown = copy.deepcopy(again)
    grown.add_labels_(3)
    grown.remove_labels_([0])
    for layer in (clone, again, grown, copy.deepcopy(again)):
        assert layer(inputs(layer)).isfinite().all()


@pytest.mark.skipif(INTERPRETING, reason="compiles on the CPU")
def test_compiled_and_exported_layers_are_checked_when_they_are_traced():
    layer = fixed(seed=0)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x = inputs(layer)
    assert torch.equal(compiled(x), layer(x))
    program = torch.export.export(layer, (x,))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert {call.removeprefix("sparse_xmc.") for call in calls} <= {"linear_forward.default", "aten.reshape.default"}
    layer.indices[2] = 0
    for trace in (
        lambda: torch.compile(copy.copy(layer), fullgraph=True, backend="eager")(x),
        lambda: torch.export.export(layer, (x,)),
        lambda: torch.export.export(layer, (x,), strict=True),
    ):
        torch._dynamo.reset()
        with pytest.raises(Exception, match="holds 0 twice"):
            trace()
    empty = fixed(device="meta").to_empty(device="cpu")
    with pytest.raises(Exception, match=UNWRITTEN):
        torch.export.export(empty, (x,))
    layer.reset_parameters(0)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    compiled(x)
    layer.to_empty(device="meta").to_empty(device="cpu")
    with pytest.raises(Exception, match=UNWRITTEN):
        compiled(x)
