"""The bias that heads start with: log-odds of what is known of the labels, kept by every way to make or remake a head."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from sparse_xmc.models import DenseLinear, FixedFanInLinear, HeadTailLinear, SparseInputLinear, sparsify_

D, L, K = 16, 12, 4
HEADS = {
    "fixed_fan_in": lambda **options: FixedFanInLinear(D, L, K, seed=1, **options),
    "groups": lambda **options: FixedFanInLinear(D, L, K, group_size=4, seed=1, **options),
    "sparse_input": lambda **options: SparseInputLinear(D, L, K, seed=1, **options),
    "dense": lambda **options: DenseLinear(D, L, seed=1, **options),
    "head_tail": lambda **options: HeadTailLinear(D, L, K, num_head=5, seed=1, **options),
    "sparsified": lambda **options: sparsify_(nn.Sequential(nn.Linear(D, L)), "0", K, **options)[0],
}
every_head = pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)


def bias(head):
    return (torch.cat([head.head.bias, head.tail.bias]) if isinstance(head, HeadTailLinear) else head.bias).detach()


@every_head
def test_expected_positives_per_row(make):
    torch.testing.assert_close(bias(make(prior=1.5)), torch.full((L,), math.log(1.5 / (L - 1.5))))
    assert torch.equal(bias(make(prior=3)).sigmoid().sum().round(decimals=4), torch.tensor(3.0))


@every_head
@pytest.mark.parametrize("kind", [torch.as_tensor, np.array, list])
def test_frequencies(make, kind):
    p = np.linspace(0.05, 0.6, L)
    torch.testing.assert_close(bias(make(prior=kind(p))), torch.from_numpy(np.log(p / (1 - p))).float())


@every_head
def test_none_is_a_head_without_prior(make):
    torch.manual_seed(0)
    expected = bias(make())
    for prior in (None, "none"):
        torch.manual_seed(0)
        assert torch.equal(bias(make(prior=prior)), expected)


def test_frequencies_at_the_ends():
    """A label never seen is half as frequent as the rarest, one always seen half as rarely missing."""
    p = [0.0, 0.2, 0.4, 1.0]
    got = FixedFanInLinear(D, 4, K, prior=p).bias.detach().sigmoid()
    torch.testing.assert_close(got / (1 - got), torch.tensor([0.1 / 1.0, 0.2 / 0.8, 0.4 / 0.6, 1.0 / 0.3]))


def test_new_draws_copies_and_dtypes_keep_it():
    head = FixedFanInLinear(D, L, K, prior=2, dtype=torch.bfloat16)
    expected = head.bias.detach().clone()
    with torch.no_grad():
        head.bias.zero_()
    twin = copy.deepcopy(head)
    for layer in (head, twin):
        layer.reset_parameters(3)
        assert torch.equal(layer.bias, expected) and expected.dtype == torch.bfloat16
    meta = FixedFanInLinear(D, L, K, prior=2, device="meta").to_empty(device="cpu")
    meta.reset_parameters()
    torch.testing.assert_close(meta.bias.detach().bfloat16(), expected)


BAD = [
    (0, ValueError, r"prior must lie in \(0, 12\) as the expected positives per row, got 0"),
    (12, ValueError, "got 12"),
    (float("nan"), ValueError, "got nan"),
    ([0.1] * 11, ValueError, r"a frequency for each of 12 labels, got shape \[11\]"),
    ([0.1] * 11 + [17], ValueError, "got 17.0 for label 11"),
    ([0.1] * 11 + [-1.0], ValueError, "got -1.0 for label 11"),
    ([0.1] * 11 + [float("nan")], ValueError, "got nan for label 11"),
    ([0.0] * 12, ValueError, "all labels' frequencies are 0"),
    ("some", TypeError, "got 'some'"),
    (True, TypeError, "got True"),
]


@pytest.mark.parametrize(("prior", "error", "text"), BAD)
@every_head
def test_bad_priors_are_named(make, prior, error, text):
    with pytest.raises(error, match=text):
        make(prior=prior)


@pytest.mark.parametrize("name", ["fixed_fan_in", "dense", "head_tail"])
def test_a_head_without_bias_takes_no_prior(name):
    with pytest.raises(ValueError, match="the layer has none"):
        HEADS[name](prior=2, bias=False)
    with pytest.raises(ValueError, match="the layer has none"):
        sparsify_(nn.Sequential(nn.Linear(D, L, bias=False)), "0", K, prior=2)
