"""Layers inside what other people's code does to modules and tensors: right as ``nn.Linear`` is, or one clear error."""

import copy
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import weight_norm

from sparse_xmc.models import (
    DenseLinear,
    FixedFanInLinear,
    HeadTailLinear,
    QuantizedFixedFanInLinear,
    SparseInputLinear,
)
from sparse_xmc.optim import FusedAdagrad, FusedAdam, FusedSGD
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="about frameworks, on the CPU kernels")
D, L, K = 16, 40, 4
LISTS = [[1], [2, 3], []]
LAYERS = {
    "fixed": lambda: FixedFanInLinear(D, L, K, seed=1),
    "grouped": lambda: FixedFanInLinear(D, L, K, group_size=8, seed=1),
    "head_tail": lambda: HeadTailLinear(D, L, K, num_head=5, seed=1),
    "sparse_input": lambda: SparseInputLinear(D, L, K, seed=1),
    "quantized": lambda: QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(D, L, K, seed=1)),
    "dense": lambda: DenseLinear(D, L, seed=1),
}


def rows(layer=None):
    x = torch.linspace(-1, 1, 3 * D, device="cpu", dtype=torch.float32).view(3, D)
    return x.to_sparse_csr() if isinstance(layer, SparseInputLinear) else x


def everything(layer, x):
    """Results of all that a layer does on the rows ``x``; it is changed by that."""
    with torch.no_grad():
        found = [layer(x), *layer.topk(x, 3)]
    if hasattr(layer, "loss"):
        for kind in ("bce", "squared_hinge", "asymmetric"):
            loss = layer.loss(x, LISTS, loss=kind)
            found += [loss, *torch.autograd.grad(loss, list(layer.parameters()))]
    if type(layer) is FixedFanInLinear:
        for kind in ("cross_entropy", "sampled_softmax"):
            options = {} if kind == "cross_entropy" else {"num_negatives": L, "sampling": "uniform"}
            torch.manual_seed(0)
            found.append(layer.loss(x, [1, 2, 3], loss=kind, **options))
        needing = x.clone().requires_grad_()
        found += torch.autograd.grad(layer(needing).square().sum(), [needing, layer.weight])
        found += [layer.to_dense().weight, layer.to_sparse_csr().to_dense(), layer.rewire_(fraction=0.5, seed=3)]
        layer.rewire_(threshold=0.1, seed=4)
        layer.rewire_(fraction=0.2, scope="global", seed=5)
        for kind in (FusedSGD, FusedAdam, FusedAdagrad):
            layer.fuse_optimizer(kind(0.1))
            layer.step(x, LISTS)
        layer.fuse_optimizer(None)
    if hasattr(layer, "add_labels_") and not isinstance(layer, SparseInputLinear):
        layer.add_labels_(2, prior=[0.1, 0.2], seed=6)
        layer.remove_labels_(list(range(8, 16)))
    return found + list(layer.state_dict().values())


@pytest.mark.parametrize("name", LAYERS)
def test_defaults_for_new_tensors_reach_no_result(name):
    """A default device and a default dtype are for the tensors of the program, not for those inside the kernels."""
    plain, other = LAYERS[name](), LAYERS[name]()
    x = rows(plain)
    expected = everything(plain, x)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            found = everything(other, x)
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


@pytest.mark.parametrize("prior", [[0.25] * L, 2])
def test_a_prior_under_a_default_device(prior):
    with torch.device("meta"):
        layer = FixedFanInLinear(D, L, K, prior=prior)
    layer.to_empty(device="cpu").reset_parameters()
    assert torch.equal(layer.bias, FixedFanInLinear(D, L, K, prior=prior).bias)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


COMPUTED = {
    "parametrize": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "weight_norm": weight_norm,
    "old weight_norm": nn.utils.weight_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
}


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("name", ["fixed", "grouped", "sparse_input"])
def test_a_computed_weight_is_used_and_never_written_to(name, kind):
    layer = LAYERS[name]()
    x, before = rows(layer), layer.weight.detach().clone()
    COMPUTED[kind](layer)
    layer.loss(x, LISTS).backward()
    reference = LAYERS[name]()
    with torch.no_grad():
        reference.weight.copy_(layer.weight)
    torch.testing.assert_close(layer.loss(x, LISTS), reference.loss(x, LISTS))
    learnt = [parameter for key, parameter in layer.named_parameters() if "weight" in key]
    assert learnt and all(parameter.grad is not None for parameter in learnt)
    for write in (
        lambda: layer.rewire_(fraction=0.5),
        lambda: layer.add_labels_(2),
        lambda: layer.remove_labels_([1]),
        *([lambda: layer.fuse_optimizer(FusedSGD(0.1))] if name != "sparse_input" else []),
    ):
        with pytest.raises(RuntimeError, match="computed from other parameters"):
            write()
    if kind == "parametrize":
        assert torch.equal(copy.deepcopy(layer).weight, layer.weight) and torch.equal(layer.weight, 2 * before)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "quantized"])
def test_layers_are_made_and_called_on_fake_tensors(name):
    with FakeTensorMode():
        layer = LAYERS[name]()
        x = torch.empty(3, D)
        assert layer(x).shape == (3, L) and type(layer.weight if hasattr(layer, "weight") else x) is not torch.Tensor


def test_one_gradient_at_a_time():
    layer, x = LAYERS["fixed"](), rows().requires_grad_()
    calls = [layer(x), layer.loss(x, LISTS), layer.loss(x, [1, 2, 3], loss="cross_entropy")]
    for y in calls:
        with pytest.raises(RuntimeError, match="takes one gradient at a time: no is_grads_batched"):
            torch.autograd.grad(y, layer.weight, torch.ones(2, *y.shape), is_grads_batched=True)
    with pytest.raises(RuntimeError, match="one gradient at a time"):
        torch.autograd.functional.jacobian(layer, x, vectorize=True)
    wanted = layer.to_dense().weight.detach()
    found = torch.autograd.functional.jacobian(layer, x[0].detach())
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["fixed", "grouped", "head_tail"])
def test_a_negation_that_torch_puts_off(name):
    layer, x = LAYERS[name](), rows()
    lazy = torch.complex(x, x).conj().imag
    assert lazy.is_neg()
    for use in (
        layer,
        lambda x: layer.loss(x, LISTS),
        lambda x: layer.topk(x, 3)[1],
        lambda x: (layer(rows().requires_grad_()) * 0).sum() + layer.loss(x, LISTS, loss="squared_hinge"),
    ):
        assert torch.equal(use(lazy), use(-x))
    gradients = []
    for upstream in (-torch.ones(3, L), torch.complex(torch.ones(3, L), torch.ones(3, L)).conj().imag):
        gradients.append(torch.autograd.grad(layer(x), list(layer.parameters()), upstream))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_rows_of_another_layout_are_named():
    for name in ("fixed", "grouped"):
        for x in (rows().to_sparse_csr(), rows().to_sparse_coo()):
            for use in (
                LAYERS[name](),
                lambda x: LAYERS["fixed"]().loss(x, LISTS),
                lambda x: LAYERS["fixed"]().topk(x, 2),
            ):
                with pytest.raises(TypeError, match=r"x must be dense, got layout torch.sparse_\w+: SparseInputLinear"):
                    use(x)


def test_a_sparse_gradient_and_rewiring():
    layer = FixedFanInLinear(D, L, K, bias=False, seed=1)
    optimizer = torch.optim.SparseAdam(layer.parameters())
    options = {"loss": "sampled_softmax", "num_negatives": 5, "sampling": "uniform", "sparse_gradient": True}
    layer.loss(rows(), [1, 2, 3], **options).backward()
    optimizer.step()
    with pytest.raises(ValueError, match="sparse gradient.*zero_grad"):
        layer.rewire_(fraction=0.5, optimizer=optimizer)
    optimizer.zero_grad()
    before = layer.indices.clone()
    layer.rewire_(fraction=0.5, optimizer=optimizer, seed=1)
    changed = layer.indices != before
    assert changed.any() and not optimizer.state[layer.weight]["exp_avg"][changed].any()


@pytest.mark.parametrize("kind", [FusedSGD, FusedAdam, FusedAdagrad])
def test_a_fused_optimizer_is_not_made_of_parameters(kind):
    layer = LAYERS["fixed"]()
    for given in (layer.parameters(), list(layer.parameters()), "0.1", None):
        with pytest.raises(TypeError, match=r"lr must be a number, got \w+ \(a fused optimizer takes no parameters"):
            kind(given)


@pytest.mark.parametrize("name", ["fixed", "grouped", "sparse_input", "quantized"])
def test_validate_sees_what_torch_does_not_count(name):
    layer = LAYERS[name]()
    layer.validate()
    layer.indices.data[1, 0] = 999
    with pytest.raises(ValueError, match=r"indices\[1\] holds 999"):
        layer.validate()
    layer.indices.data[1, 0] = layer.indices[1, 1]
    with pytest.raises(ValueError, match="twice"):
        layer.validate()
    with pytest.raises(RuntimeError, match="uninitialised memory"):
        FixedFanInLinear(D, L, K, device="meta").to_empty(device="cpu").validate()


def test_a_negation_that_torch_puts_off_in_a_graph():
    torch._dynamo.reset()
    layer, x = LAYERS["fixed"](), rows()
    program = torch.compile(lambda x: layer(x), fullgraph=True, backend="aot_eager")
    assert torch.equal(program(torch.complex(x, x).conj().imag), layer(-x)) and torch.equal(program(x), layer(x))


@pytest.mark.parametrize("name", LAYERS)
def test_conversions_that_swap_tensors(name):
    source = LAYERS[name]()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer = LAYERS[name]()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1) if name != "quantized" else None
        layer.double().float().load_state_dict(source.state_dict())
        with torch.no_grad():
            assert torch.equal(layer(rows(layer)), source(rows(source)))
        if optimizer is not None:  # its parameters are still those of the layer
            layer.loss(rows(layer), LISTS).backward()
            optimizer.step()
            with torch.no_grad():
                assert not torch.equal(layer(rows(layer)), source(rows(source)))
        if name in ("fixed", "grouped"):
            empty = FixedFanInLinear(D, L, K, group_size=source.group_size, device="meta").to_empty(device="cpu")
            state = source.state_dict()
            empty.load_state_dict({"weight": state["weight"]}, strict=False)
            with pytest.raises(RuntimeError, match="uninitialised memory in bias and indices"):
                empty(rows())
            empty.load_state_dict(state)
            assert torch.equal(empty(rows()), source(rows()))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.mark.parametrize("name", LAYERS)
def test_nested_rows_are_named(name):
    if name in ("dense", "sparse_input"):
        pytest.skip("nn.Linear takes them; sparse rows have a layout of their own")
    for layout in (torch.strided, torch.jagged):
        x = torch.nested.nested_tensor([rows()[:1], rows()[1:]], layout=layout)
        for use in (LAYERS[name](), lambda x: LAYERS[name]().topk(x, 2)):
            with pytest.raises(TypeError, match="x is a nested tensor"):
                use(x)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "quantized"])
def test_sparse_weights_of_a_loss_are_named(name):
    layer = LAYERS[name]()
    for option, size in (("pos_weight", L), ("sample_weight", 3)):
        with pytest.raises(TypeError, match=f"{option} must be dense, got layout torch.sparse_coo"):
            layer.loss(rows(layer), LISTS, **{option: torch.ones(size).to_sparse()})


def test_layers_side_by_side_are_refused():
    layers = [LAYERS["fixed"]() for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(layers)

    def call(parameters, buffers):
        return torch.func.functional_call(layers[0], (parameters, buffers), (rows(),))

    with pytest.raises(RuntimeError, match="torch.func takes no layers with connections of their own side by side"):
        torch.vmap(call)(parameters, buffers)
    assert torch.equal(torch.func.functional_call(layers[0], layers[1].state_dict(), (rows(),)), layers[1](rows()))


WITHOUT_WARNINGS = """
import warnings
import torch
from sparse_xmc.models import HeadTailLinear, FixedFanInLinear
warnings.simplefilter("error")
x, lists = torch.ones(2, 16), [[1], [2, 3]]
HeadTailLinear(16, 40, 4, num_head=5).loss(x, lists).backward()
FixedFanInLinear(16, 40, 4).topk(x, 3, exclude=lists)
"""


def test_lists_bring_no_warning_of_torch():
    """torch warns in a process that makes its first CSR matrix: a detail of ours here, and an error under ``-W error``."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_WARNINGS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize("make", [FixedFanInLinear, SparseInputLinear], ids=["fixed", "sparse_input"])
def test_skip_init(make):
    layer = torch.nn.utils.skip_init(make, D, L, K)
    with pytest.raises(RuntimeError, match="uninitialised memory"):
        layer(rows(layer))


@pytest.mark.parametrize("name", ["fixed", "grouped", "sparse_input", "quantized"])
def test_assigned_indices_take_the_dtype_of_the_layer(name):
    source, target = LAYERS[name](), LAYERS[name]()
    state = {key: value.int() if key == "indices" else value for key, value in source.state_dict().items()}
    target.load_state_dict(state, assign=True)
    assert target.indices.dtype == torch.uint16
    with torch.no_grad():
        assert torch.equal(target(rows(target)), source(rows(source)))


@pytest.mark.parametrize("name", ["fixed", "grouped", "head_tail", "quantized"])
def test_a_traced_program_is_saved_and_loaded(name):
    layer, file = LAYERS[name](), io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(layer, (rows(),)), file)
        file.seek(0)
        program = torch.jit.load(file)
        for x in (rows(), torch.cat([rows(), 2 * rows()])):
            assert torch.equal(program(x), layer(x))
        assert torch.equal(torch.jit.freeze(program.eval())(rows()), layer(rows()))


def test_sizes_may_be_integers_of_numpy():
    d, labels, k = np.int64(D), np.int32(L), np.uint8(K)
    layers = {
        "fixed": FixedFanInLinear(d, labels, k, group_size=np.int64(1), seed=np.int64(1)),
        "head_tail": HeadTailLinear(d, labels, k, num_head=np.int64(5), seed=1),
        "sparse_input": SparseInputLinear(d, labels, k, seed=1),
        "quantized": QuantizedFixedFanInLinear(d, labels, k),
        "dense": DenseLinear(d, labels, seed=1),
    }
    assert all(type(layer.in_features) is type(layer.out_features) is int for layer in layers.values())
    for name in ("fixed", "head_tail", "sparse_input", "dense"):
        own, plain = layers[name], LAYERS[name]()
        x = rows(own)
        for a, b in zip(own.topk(x, np.int64(3)), plain.topk(x, 3), strict=True):
            assert torch.equal(a, b)
        own.add_labels_(np.int64(2), prior=[0.1, 0.2])
        assert own.out_features == L + 2
    layers["fixed"].rewire_(fraction=np.float32(0.5), seed=np.int64(3))
    for wrong in (np.float64(3.0), True, "3"):
        with pytest.raises(TypeError, match="k must be an int"):
            layers["fixed"].topk(rows(), wrong)


class Packed(torch.Tensor):
    """State in fewer bits, as optimizers of other packages keep it."""


def test_state_in_fewer_bits_is_named_before_anything_changes():
    layer = LAYERS["fixed"]()
    optimizer = torch.optim.AdamW(layer.parameters())
    layer.loss(rows(), LISTS).backward()
    optimizer.step()
    optimizer.state[layer.weight]["exp_avg_sq"] = optimizer.state[layer.weight]["exp_avg_sq"].as_subclass(Packed)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(
        TypeError, match="exp_avg_sq of AdamW is a Packed, and rewiring resets state in plain tensors only"
    ):
        layer.rewire_(fraction=0.5, optimizer=optimizer)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "quantized"])
def test_new_labels_are_told_in_any_form(name):
    x, lists = rows(), [[0], [0, 1], []]
    held = torch.tensor([[1, 0], [1, 1], [0, 0]])
    found = []
    for targets in (held.float().to_sparse_csr(), lists, held.bool(), held.numpy(), held.to_sparse_coo()):
        layer = LAYERS[name]()
        layer.add_labels_(2, rows(layer), targets, seed=3)
        found.append(layer.state_dict())
    for state in found[1:]:
        assert all(torch.equal(value, found[0][key]) for key, value in state.items())
    for given, error, message in (
        ((2, x, [[2], [], []]), ValueError, r"targets\[0\] holds label 2, outside \[0, 2\)"),
        ((2, x[:, :3], lists), ValueError, r"x must be \[..., in_features=16\]"),
        ((2, x, lists[:2]), ValueError, "one list of labels for each of 3 rows, got 2"),
    ):
        with pytest.raises(error, match=message):
            LAYERS[name]().add_labels_(*given)
    layer = LAYERS[name]()
    layer.remove_labels_([])
    assert layer.out_features == L
