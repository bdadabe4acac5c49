"""Serving a fixed fan-in head on a CPU: load, predict, latency; export to ``torch.export``, scipy CSR and dense.

python examples/serving.py head.safetensors                    # a table of latencies
python examples/serving.py head.safetensors --new 670091 --features 768 --fan-in 32   # makes one first
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparse_xmc.models import FixedFanInLinear


def save(head: FixedFanInLinear, path: str) -> None:
    """One safetensors file; what the tensors cannot tell is in its header."""
    from safetensors.torch import save_file

    sizes = {"in_features": head.in_features, "group_size": head.group_size}
    save_file(dict(head.state_dict()), path, metadata={"fixed_fan_in": json.dumps(sizes)})


def load(path: str) -> FixedFanInLinear:
    """The head of a file that ``save`` wrote; indices are checked."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        sizes = json.loads(file.metadata()["fixed_fan_in"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weight = state["weight"]
    head = FixedFanInLinear(
        sizes["in_features"],
        *weight.shape,
        group_size=sizes["group_size"],
        bias="bias" in state,
        dtype=weight.dtype,
        device="meta",
    ).to_empty(device="cpu")
    head.load_state_dict(state)
    return head.eval()


def to_scipy(head: FixedFanInLinear) -> Any:
    """The weights as ``scipy.sparse.csr_matrix [labels, features]``."""
    import scipy.sparse as sp

    csr = head.to_sparse_csr()
    parts = (csr.values().numpy(), csr.col_indices().numpy(), csr.crow_indices().numpy())
    return sp.csr_matrix(parts, shape=tuple(csr.shape))


def export(head: FixedFanInLinear) -> torch.export.ExportedProgram:
    """The forward as a program with a dynamic batch size; running it needs ``import sparse_xmc`` for the kernels."""
    example = torch.zeros(2, head.in_features, dtype=head.weight.dtype)
    return torch.export.export(head, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def latency(head: nn.Module, batch: int, k: int, repeats: int) -> dict[str, float]:
    """Median and 99th percentile in milliseconds of the ``k`` best labels of ``batch`` rows."""
    x = torch.randn(batch, head.in_features)
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        best_labels(head, x, k)
        times.append(time.perf_counter() - start)
    milliseconds = torch.tensor(times[2:]) * 1e3
    return {"p50 ms": float(milliseconds.quantile(0.5)), "p99 ms": float(milliseconds.quantile(0.99))}


@torch.inference_mode()
def best_labels(head: nn.Module, x: Tensor, k: int) -> Tensor:
    """``[B, k]`` labels, best first."""
    if isinstance(head, FixedFanInLinear):
        return head.topk(x, k)[1]
    return head(x).topk(k).indices


def main(arguments: Sequence[str] | None = None) -> dict[tuple[str, int], dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--new", type=int, metavar="LABELS", help="make a random head of so many labels first")
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--fan-in", type=int, default=32)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dense", action="store_true", help="time the same head as nn.Linear beside it")
    options = parser.parse_args(arguments)
    if options.new:
        save(FixedFanInLinear(options.features, options.new, options.fan_in, seed=0), options.file)
    head = load(options.file)
    print(head)
    heads: dict[str, nn.Module] = {"fixed fan-in": head}
    if options.dense:
        heads["dense"] = head.to_dense()
    table = {}
    for name, one in heads.items():
        print(f"{name:>14}: batch    p50 ms    p99 ms")
        for batch in (1, 8, 64):
            measured = latency(one, batch, options.k, options.repeats)
            table[(name, batch)] = measured
            print(f"{batch:21d} {measured['p50 ms']:9.2f} {measured['p99 ms']:9.2f}")
    return table


if __name__ == "__main__":
    main()
