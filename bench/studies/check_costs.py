"""What a layer's checks and a loss's weights cost beside the work: microseconds, and shares of a training step.

    python -m bench.studies.check_costs [--repeats N] [--sizes N]

CPU kernels, float32, one fused SGD step per size, in CPU time. Weights are compared with the step without them in
alternation, by the median of the ratios; what is not used costs what ``objective`` takes to find nothing. Rows are printed,
nothing is written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.ops._arguments import check_input
from sparse_xmc.ops._objective import objective
from sparse_xmc.ops.cpu_kernels._csr import check_csr
from sparse_xmc.optim import FusedSGD


class Size(NamedTuple):
    B: int
    D: int
    L: int
    K: int
    labels_per_row: int


SIZES = (Size(8, 64, 128, 8, 2), Size(128, 512, 4271, 32, 5), Size(64, 768, 200_000, 32, 5))
CALLS = 2000  # of what takes a microsecond


class Cost(NamedTuple):
    what: str
    microseconds: float
    share: float | None = None  # of a step


def least(call: Callable[[], Any], repeats: int, calls: int = 1) -> float:
    """CPU microseconds of a call: the least of ``repeats`` rounds of ``calls``."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(calls):
            call()
        found.append((time.process_time() - start) / calls * 1e6)
    return min(found)


def ratio(call: Callable[[], Any], other: Callable[[], Any], repeats: int) -> float:
    """Median of the ratios of two calls that take turns; who begins, changes."""
    found = []
    for i in range(repeats):
        pair = [least(one, 1) for one in ((call, other) if i % 2 else (other, call))]
        found.append(pair[0] / pair[1] if i % 2 else pair[1] / pair[0])
    return median(found)


def of_host(repeats: int) -> Iterator[Cost]:
    """Checks in every call of ``head(x)`` and ``head.loss``, whatever the size."""
    layer, x = FixedFanInLinear(64, 128, 8, seed=0), torch.randn(8, 64)
    plain = least(lambda: layer.indices, repeats, CALLS)
    checked = least(layer.checked_indices, repeats, CALLS)
    yield Cost("indices, unchecked", plain)
    yield Cost("indices, checked", checked)
    yield Cost("difference", checked - plain)
    yield Cost("is_in_onnx_export, head(x) only", least(torch.onnx.is_in_onnx_export, repeats, CALLS))
    yield Cost("width and dtype of x", least(lambda: check_input(x, 64), repeats, CALLS))
    yield Cost("weights not used", least(lambda: objective("bce", {}, 8, layer.weight), repeats, CALLS))


def of_step(size: Size, repeats: int) -> Iterator[Cost]:
    """Checks of targets and weights of the loss, as shares of a step."""
    generator = torch.Generator().manual_seed(0)
    layer = FixedFanInLinear(size.D, size.L, size.K, seed=0)
    layer.fuse_optimizer(FusedSGD(1e-3))
    x = torch.randn(size.B, size.D, generator=generator)
    crow = torch.arange(size.B + 1) * size.labels_per_row
    col = torch.randint(size.L, (int(crow[-1]),), generator=generator)
    weights = {
        "pos_weight": 0.5 + torch.rand(size.L, generator=generator),
        "sample_weight": torch.rand(size.B, generator=generator),
    }

    def step(*names: str) -> Callable[[], Any]:
        used = {name: weights[name] for name in names}
        return lambda: layer.step(x, (crow, col), **used)

    whole = least(step(), repeats)
    yield Cost("step", whole, 1.0)
    entries = (crow.numpy(), col.numpy(), size.L)
    checks = least(lambda: check_csr(*entries, "targets", "label"), repeats, 100)
    yield Cost("checks of targets", checks, checks / whole)
    for names in (("pos_weight",), ("sample_weight",), ("pos_weight", "sample_weight")):
        more = ratio(step(*names), step(), repeats) - 1
        yield Cost("with " + " and ".join(names), more * whole, more)


def show(size: Size | None, costs: Sequence[Cost]) -> None:
    print("\nof a call" if size is None else f"\nB={size.B} D={size.D} L={size.L:,} K={size.K}")
    for what, microseconds, share in costs:
        print(f"  {what:36}{microseconds:11.2f} us" + ("" if share is None else f"{100 * share:9.2f} %"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="only the first so many of the steps' sizes")
    arguments = parser.parse_args()
    repeats = arguments.repeats
    show(None, list(of_host(repeats)))
    for size in SIZES[: arguments.sizes]:
        show(size, list(of_step(size, repeats)))


if __name__ == "__main__":
    main()
