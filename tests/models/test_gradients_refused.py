"""What has no gradient says so: second derivatives, forward mode, ``torch.func``; each loss of each layer."""

import pytest
import torch
from torch.autograd import forward_ad

from sparse_xmc.distributed import LabelShardedLinear
from sparse_xmc.models import (
    DenseLinear,
    FixedFanInLinear,
    HeadTailLinear,
    QuantizedFixedFanInLinear,
    SparseInputLinear,
)
from sparse_xmc.optim import FusedSGD

B, D, L, K = 4, 16, 12, 4
LISTS, CLASSES = [[3], [], [7, 2], [11]], [3, 0, 7, 11]


def fused():
    head = FixedFanInLinear(D, L, K, seed=1)
    head.fuse_optimizer(FusedSGD(0.1))
    return head


HEADS = {
    "fixed_fan_in": lambda: FixedFanInLinear(D, L, K, seed=1),
    "groups": lambda: FixedFanInLinear(D, L, K, group_size=4, seed=1),
    "fused": fused,
    "head_tail": lambda: HeadTailLinear(D, L, K, num_head=5, seed=1),
    "sparse_input": lambda: SparseInputLinear(D, L, K, seed=1),
    "sharded": lambda: LabelShardedLinear(D, L, K, seed=1),
}
MULTI_LABEL = ("bce", "squared_hinge")
SOFTMAX = {
    "cross_entropy": {"loss": "cross_entropy"},
    "smoothed": {"loss": "cross_entropy", "label_smoothing": 0.1},
    "sampled_softmax": {"loss": "sampled_softmax", "num_negatives": 5},
}


def calls():
    """(name, head, function of x) of everything that is differentiable."""
    for name, make in HEADS.items():
        for loss in MULTI_LABEL:
            head = make()
            yield f"{name}-{loss}", head, lambda x, head=head, loss=loss: head.loss(x, LISTS, loss=loss)
        if name in ("fixed_fan_in", "groups", "sharded"):
            for kind, options in SOFTMAX.items():
                if name == "sharded" and kind == "sampled_softmax":
                    continue
                head = make()
                targets = torch.tensor(CLASSES)
                yield f"{name}-{kind}", head, lambda x, head=head, o=options, t=targets: head.loss(x, t, **o)
        if name != "sparse_input":
            head = make()
            yield f"{name}-forward", head, lambda x, head=head: head(x).square().sum()


CALLS = {name: (head, call) for name, head, call in calls()}
DENSE_INPUT = [name for name in CALLS if not name.startswith("sparse_input")]
every_call = pytest.mark.parametrize("name", DENSE_INPUT)
REFUSAL = (RuntimeError, NotImplementedError, ValueError, TypeError)


def make_input():
    return torch.randn(B, D, generator=torch.Generator().manual_seed(0))


@every_call
def test_second_derivatives(name):
    """By ``create_graph`` and another gradient, of the input's gradient and of a parameter's."""
    head, call = CALLS[name]
    x = make_input().requires_grad_()
    (gradient,) = torch.autograd.grad(call(x), [x], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented|differentiate twice"):
        gradient.square().sum().backward()
    if isinstance(head, FixedFanInLinear) and head._optimizer is None:
        gradients = torch.autograd.grad(call(x), [head.weight, head.bias], create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives are not implemented|differentiate twice"):
            torch.autograd.grad(sum(g.square().sum() for g in gradients), [x])


@pytest.mark.parametrize("loss", MULTI_LABEL)
def test_second_derivatives_of_sparse_input(loss):
    head = HEADS["sparse_input"]()
    value = head.loss(make_input().relu().to_sparse_csr(), LISTS, loss=loss)
    (gradient,) = torch.autograd.grad(value, [head.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented|differentiate twice"):
        gradient.square().sum().backward()


@every_call
def test_forward_mode(name):
    _, call = CALLS[name]
    with forward_ad.dual_level(), pytest.raises(REFUSAL, match="(?i)forward|jvp"):
        call(forward_ad.make_dual(make_input(), torch.ones(B, D)))


@every_call
def test_transforms(name):
    """``grad``, ``vmap`` over inputs and ``jvp`` of ``torch.func``."""
    _, call = CALLS[name]
    x = make_input()
    for transformed, arguments in (
        (torch.func.grad(call), (x,)),
        (torch.func.vmap(call), (x[None],)),
        (lambda x: torch.func.jvp(call, (x,), (torch.ones_like(x),)), (x,)),
    ):
        with pytest.raises(REFUSAL):
            transformed(*arguments)


@pytest.mark.parametrize("group_size", [1, 4])
def test_quantized_layers_have_no_gradient(group_size):
    head = QuantizedFixedFanInLinear.from_layer(FixedFanInLinear(D, L, K, group_size=group_size, seed=1))
    x = make_input()
    with pytest.raises(RuntimeError, match="inference only"):
        head(x.requires_grad_())
    with forward_ad.dual_level(), pytest.raises(REFUSAL):
        head(forward_ad.make_dual(make_input(), torch.ones(B, D)))
    for transform in (torch.func.grad, torch.func.vmap):
        with pytest.raises(REFUSAL):
            transform(lambda x: head(x).sum())(make_input()[None] if transform is torch.func.vmap else make_input())


OPTIONS = {
    "class_weight": lambda: {"loss": "cross_entropy", "class_weight": torch.ones(L, requires_grad=True)},
    "frequencies": lambda: {
        "loss": "sampled_softmax",
        "sampling": "in_batch",
        "frequencies": torch.ones(L, requires_grad=True),
    },
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_without_a_gradient(option):
    head = HEADS["fixed_fan_in"]()
    with pytest.raises(ValueError, match=f"{option} must not require a gradient"):
        head.loss(make_input(), CLASSES, **OPTIONS[option]())
    with torch.no_grad():
        head.loss(make_input(), CLASSES, **OPTIONS[option]())


def test_sharded_class_weight_and_sparse_input_values():
    with pytest.raises(ValueError, match="class_weight must not require a gradient"):
        HEADS["sharded"]().loss(make_input(), torch.tensor(CLASSES), **OPTIONS["class_weight"]())
    crow, col, values = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([1, 2, 3, 4]), torch.ones(4, requires_grad=True)
    x = torch.sparse_csr_tensor(crow, col, values, (B, D), check_invariants=False)
    with pytest.raises(ValueError, match="x must not require a gradient"):
        HEADS["sparse_input"]().loss(x, LISTS)


def test_dense_heads_differentiate_as_torch_does():
    """The rival has second derivatives: nothing refuses what torch computes."""
    head, x = DenseLinear(D, L, seed=1), make_input().requires_grad_()
    (gradient,) = torch.autograd.grad(head.loss(x, LISTS), [x], create_graph=True)
    gradient.square().sum().backward()
    assert head.weight.grad.isfinite().all()
