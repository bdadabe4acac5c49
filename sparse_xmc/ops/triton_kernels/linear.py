"""Launchers of the fixed fan-in linear layer: which kernel family serves a call.

==================  ===========================  ========================================================
                    G = 1                        G > 1
==================  ===========================  ========================================================
``forward``         gather, multiply-add         gather once per group, ``tl.dot``
``backward_input``  atomic row per connection,   ``tl.dot``, then one atomic row per connection of a group
                    or dense tiles
the same, determ.   inverted index over labels   ``tl.dot``, then inverted index over the groups' sums
``backward_weight`` gather, row sums             gather once per group, ``tl.dot``
==================  ===========================  ========================================================
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from sparse_xmc.ops._arguments import QUANTIZED_DTYPE
from sparse_xmc.ops._topology_cache import cached_inverse
from sparse_xmc.ops.triton_kernels import input_gradient, linear_dense, linear_gather, linear_group, linear_inverted
from sparse_xmc.ops.triton_kernels._compile_case import CompileCase
from sparse_xmc.ops.triton_kernels._launch import Plans, padded
from sparse_xmc.ops.triton_kernels._layout import feature_major
from sparse_xmc.ops.triton_kernels.transpose import transpose_indices

_WAYS = Plans()


lay_out = feature_major


def forward(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    group_size: int,
    weight_scale: Tensor | None = None,
    laid_out: Tensor | None = None,
) -> Tensor:
    """x [B, D] -> y [B, L] in x's dtype."""
    weight, indices = weight.contiguous(), indices.contiguous()
    bias = None if bias is None else bias.contiguous()
    weight_scale = None if weight_scale is None else weight_scale.contiguous()
    if group_size == 1:
        return linear_gather.forward(x, weight, indices, bias, weight_scale, laid_out)
    return linear_group.forward(x, weight, indices, bias, group_size, weight_scale, laid_out)


def backward_input(
    dy: Tensor, weight: Tensor, indices: Tensor, in_features: int, group_size: int, deterministic: bool
) -> Tensor:
    """dy [B, L], any strides -> dx [B, D] in dy's dtype."""
    weight, indices = weight.contiguous(), indices.contiguous()
    if deterministic:
        inverted = cached_inverse(indices, in_features, transpose_indices)
        return linear_inverted.backward_input(dy, weight, indices, in_features, group_size, *inverted)
    if group_size == 1:
        kernels = linear_dense if _way(dy, weight, in_features) == "dense" else linear_gather
        return kernels.backward_input(dy, weight, indices, in_features)
    return linear_group.backward_input(dy, weight, indices, in_features, group_size)


def _way(dy: Tensor, weight: Tensor, in_features: int) -> str:
    """The way to the input gradient for a group size of 1, by its predicted time."""
    key = (dy.shape, weight.shape, in_features, dy.dtype, weight.dtype, dy.device, input_gradient.choice())
    found = _WAYS.get(key)
    if found is None:
        (B, L), D = dy.shape, in_features
        problem = input_gradient.Problem(B, L, D, weight.shape[1], dy.dtype, weight.dtype)
        found = _WAYS.keep(key, input_gradient.ways(problem, 1, dy.device)[0])
    return found


def backward_weight(
    dy: Tensor, x: Tensor, indices: Tensor, group_size: int, dtype: torch.dtype, laid_out: Tensor | None = None
) -> Tensor:
    """dy [B, L], x [B, D] -> dw [L, K] in ``dtype``."""
    indices = indices.contiguous()
    if group_size == 1:
        return linear_gather.backward_weight(dy, x, indices, dtype, laid_out)
    return linear_group.backward_weight(dy, x, indices, group_size, dtype, laid_out)


def compile_cases() -> Iterator[CompileCase]:
    """Both families in every direction and dtype; mixed dtypes, masked groups and 8-bit weights once."""
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        yield from _cases(dtype, dtype, K=32, G=1)
        yield from _cases(dtype, dtype, K=64, G=32)
    yield from _cases(torch.float16, torch.float32, K=32, G=1)
    yield from _cases(torch.bfloat16, torch.float32, K=64, G=32)
    yield from _cases(torch.float16, torch.float16, K=24, G=5)
    yield _quantized_case(K=32, G=1)
    yield _quantized_case(K=64, G=32)


def _quantized_case(K: int, G: int) -> CompileCase:
    L = 20_011
    x, bias = (torch.empty(*size, dtype=torch.bfloat16, device="meta") for size in ((128, 768), (L,)))
    weight = torch.empty(L, K, dtype=QUANTIZED_DTYPE, device="meta")
    indices = torch.empty(-(-L // G), K, dtype=torch.uint16, device="meta")
    scale = torch.empty(L, device="meta")
    name = f"forward[bfloat16,8-bit weights,K={K},G={G}]"
    return CompileCase(name, lambda: forward(x, weight, indices, bias, G, scale))


def _cases(dtype: torch.dtype, weight_dtype: torch.dtype, K: int, G: int) -> Iterator[CompileCase]:
    B, D, L = 128, 768, 20_011
    x = torch.empty(B, D, dtype=dtype, device="meta")
    dy = torch.empty(B, padded(L), dtype=dtype, device="meta")[:, :L]  # as gradients of a layer's logits come
    weight, bias = (torch.empty(*size, dtype=weight_dtype, device="meta") for size in ((L, K), (L,)))
    indices = torch.empty(-(-L // G), K, dtype=torch.uint16, device="meta")
    names = "-".join(str(d).removeprefix("torch.") for d in dict.fromkeys((dtype, weight_dtype)))
    name = f"[{names},K={K},G={G}]"
    yield CompileCase(f"forward{name}", lambda: forward(x, weight, indices, bias, G))
    for way in ("atomic", "dense") if G == 1 and dtype != torch.float64 else ("atomic",):

        def launch(way: str = way) -> Tensor:
            with input_gradient.forced(way):
                return backward_input(dy, weight, indices, D, G, False)

        yield CompileCase(f"backward_input{'_dense' * (way == 'dense')}{name}", launch)
    yield CompileCase(f"backward_input_deterministic{name}", lambda: backward_input(dy, weight, indices, D, G, True))
    wgmma = K >= 64
    yield CompileCase(f"backward_weight{name}", lambda: backward_weight(dy, x, indices, G, weight_dtype), wgmma)
