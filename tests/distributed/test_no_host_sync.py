"""A sharded step never waits for its device: tried with meta tensors in the place of a GPU's, on any machine.

What asks for a number (``item``, a branch on a tensor) or has a size that depends on one (a mask, ``nonzero``, ``unique``)
has no answer there and raises; what crosses between host and device is told by its operands. The ops stand for their kernels;
what launches those runs on meta tensors in the compile gate.
"""

import contextlib
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparse_xmc import HeadTailLinear, ops
from sparse_xmc.distributed import LabelShardedLinear, linear, ranks
from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.distributed.rows import OwnRows
from sparse_xmc.models import AuxiliaryObjective, FixedFanInLinear
from sparse_xmc.ops import cross_entropy
from sparse_xmc.optim import FusedAdagrad

B, D, L, K = 6, 16, 40, 4
DEVICE = torch.device("meta")


class NoCrossing(TorchDispatchMode):
    """Raises for a tensor that crosses from the host to the device or back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, results)) if isinstance(t, Tensor)}
        assert len(devices) < 2, f"{func} crosses between {sorted(devices)}"
        return results


class NoNumbers(TorchFunctionMode):
    """Raises where Python's numbers become a tensor, which on a GPU is a copy that the host waits for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor, torch.from_numpy), f"{func} of {args}"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def watched() -> Iterator[None]:
    with NoNumbers(), NoCrossing():
        yield


class Sent:
    """A collective under way."""

    def wait(self) -> None:
        pass


@pytest.fixture(autouse=True)
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is rank 1 of two. Nothing is sent, and hosts hear from each other what they say themselves."""

    def ranks_of(group: object, device: torch.device) -> Ranks:
        made = Ranks(None, device)
        made.rank, made.size = (1, 2) if group else (0, 1)
        return made

    monkeypatch.setattr(linear, "process_groups", lambda *mesh: (True, None))
    monkeypatch.setattr(linear, "Ranks", ranks_of)
    monkeypatch.setattr(Ranks, "gather_integers", lambda ranks, values, what: [list(values)] * ranks.size)
    monkeypatch.setattr(Ranks, "gather_documents", lambda ranks, value, what: [value] * ranks.size)
    monkeypatch.setattr(ranks, "_all_gather", lambda everyone, mine, **options: Sent())
    monkeypatch.setattr(dist, "all_to_all_single", lambda received, sent, *sizes, **options: None)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, **options: None)
    monkeypatch.setattr(FixedFanInLinear, "reset_parameters", lambda layer, *options, **others: None)


def sharded(sharing: str, labels: int = L) -> LabelShardedLinear:
    """A head after its first step, in which the ranks' weights are compared."""
    head = LabelShardedLinear(D, labels, K, device=DEVICE, rows=sharing, seed=0)
    if isinstance(head._rows, OwnRows):
        head._rows._agreed.add((torch.float32, True))
    return head


def training_step(head: torch.nn.Module, form: str = "pair", sent_before: bool = False, **options: object) -> None:
    """A batch as a loader leaves it on the device, through an encoder, the head and back."""
    offsets, labels, classes = (torch.zeros(n, dtype=torch.int64, device=DEVICE) for n in (B + 1, 9, B))
    forms = {
        "pair": (offsets, labels),
        "sorted": ops.Positives(labels, labels.int(), B, L),
        "classes": classes,
    }
    encoder = torch.nn.Linear(D, D, device=DEVICE)
    inputs = torch.randn(B, D, device=DEVICE)
    with watched():
        targets = head.exchange_targets(forms[form]) if sent_before else forms[form]
        head.loss(encoder(inputs), targets, **options).backward()
    assert encoder.weight.grad.device == DEVICE


CASES = {
    "bce": {},
    "sorted": {"form": "sorted"},
    "sent before": {"sent_before": True},
    "every row and label": {"reduction": "mean_all", "loss": "squared_hinge"},
    "softmax": {"form": "classes", "loss": "cross_entropy", "label_smoothing": 0.1},
}


@pytest.mark.parametrize("sharing", ["own", "shared"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_asks_no_device(case, sharing):
    training_step(sharded(sharing), **CASES[case])


@pytest.mark.parametrize("sharing", ["own", "shared"])
def test_nor_does_one_with_a_fused_optimizer(sharing):
    head, optimizer = sharded(sharing), FusedAdagrad(lr=0.1)
    head.shard.fuse_optimizer(optimizer)
    for _ in range(2):
        training_step(head)
        with watched():
            optimizer.step()


def test_nor_a_head_in_two_parts_nor_the_auxiliary_objective():
    parts = HeadTailLinear(D, L, K, num_head=5, device=DEVICE, seed=0)
    parts.tail = sharded("shared", L - 5)
    training_step(parts)
    training_step(parts, form="sorted")
    training_step(AuxiliaryObjective(D, torch.arange(L) // 8).to(DEVICE))


@pytest.mark.parametrize("smoothing", [None, 0.1])
def test_nor_do_the_tiles_of_the_softmax(monkeypatch, smoothing):
    monkeypatch.setattr(cross_entropy, "kernels", lambda op, tensor: EmptyLinear)
    monkeypatch.setattr(cross_entropy, "_TILE_ELEMENTS", B * 16)
    x, weight, bias, rows = (torch.empty(size, device=DEVICE) for size in ((B, D), (L, K), (L,), (B,)))
    indices, classes = torch.empty(L, K, dtype=torch.int32, device=DEVICE), rows.long()
    even = None if smoothing is None else rows
    with watched():
        cross_entropy._statistics(x, weight, indices, bias, classes, None, 1, smoothing is not None)
        cross_entropy._gradients(
            x, weight, indices, bias, classes, None, rows, rows, rows, even, 1, True, True, True, False
        )


class EmptyLinear:
    """Kernels of the layer that compute nothing."""

    lay_out = staticmethod(lambda x: x)
    forward = staticmethod(lambda x, weight, *others: x.new_empty(len(x), len(weight)))
    backward_input = staticmethod(lambda dy, weight, indices, features, *options: dy.new_empty(len(dy), features))
    backward_weight = staticmethod(lambda dy, x, indices, *options: dy.new_empty(dy.shape[1], indices.shape[1]))


def test_nor_does_sorting_many_targets():
    from sparse_xmc.ops.triton_kernels.targets import _sorted_by_torch

    offsets, labels = (torch.empty(n, dtype=torch.int64, device=DEVICE) for n in (B + 1, 9000))
    with watched():
        assert [len(part) for part in _sorted_by_torch(offsets, labels, B, L)] == [9000, 9000]


WAITS = {
    "item": lambda x: x.sum().item(),
    "branch": lambda x: bool(x.any()),
    "list": lambda x: x.tolist(),
    "mask": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "unique": torch.unique,
    "bincount": torch.bincount,
    "repeats": torch.repeat_interleave,
    "to the host": lambda x: x.cpu(),
    "to the device": lambda x: torch.zeros(3).to(DEVICE),
    "numbers": lambda x: torch.tensor([1, 2], device=DEVICE),
}


@pytest.mark.parametrize("wait", WAITS)
def test_what_waits_is_found(wait):
    with watched(), pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        WAITS[wait](torch.zeros(4, dtype=torch.int64, device=DEVICE))
