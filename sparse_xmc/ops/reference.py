"""The ops in eager torch: their definition, in a few lines each and without a ``[B, L, K]`` tensor.

Differentiable by torch's own autograd, on any device. Slow: for reading and for tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_xmc.ops._arguments import check_seed, compute_dtype, num_index_rows


def expand_groups(indices: Tensor, out_features: int, group_size: int) -> Tensor:
    """Indices of every label as int64 ``[L, K]``."""
    return indices.long().repeat_interleave(group_size, dim=0)[:out_features]


def fixed_fan_in_linear(
    x: Tensor, weight: Tensor, indices: Tensor, bias: Tensor | None = None, *, group_size: int = 1
) -> Tensor:
    """``y[..., l] = bias[l] + sum_k weight[l, k] * x[..., indices[l // G, k]]``: an embedding bag of ``x`` transposed."""
    acc = compute_dtype(weight.dtype)
    table = x.reshape(-1, x.shape[-1]).t().to(acc)
    bags = expand_groups(indices, weight.shape[0], group_size)
    y = F.embedding_bag(bags, table, per_sample_weights=weight.to(acc), mode="sum").t()
    if bias is not None:
        y = y + bias.to(acc)
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def fixed_fan_in_loss(
    x: Tensor,
    weight: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    loss: str = "bce",
    reduction: str = "mean",
    group_size: int = 1,
) -> Tensor:
    """The multi-label loss by its formula; materialises logits and targets ``[B, L]``, unlike the op."""
    acc = compute_dtype(weight.dtype)
    z = fixed_fan_in_linear(x.reshape(-1, x.shape[-1]).to(acc), weight, indices, bias, group_size=group_size)
    crow, labels = targets.crow_indices().long(), targets.col_indices().long()
    rows = torch.repeat_interleave(torch.arange(z.shape[0], device=z.device), crow.diff())
    positive = torch.zeros(z.shape, dtype=torch.bool, device=z.device).index_put_((rows, labels), rows >= 0)
    signed = torch.where(positive, -z, z)
    total = F.softplus(signed).sum() if loss == "bce" else (1 + signed).clamp(min=0).square().sum()
    return total / max(1, z.shape[0]) if reduction == "mean" else total


def philox(seed: int, c0: Tensor, c1: Tensor, c2: int, c3: int) -> list[Tensor]:
    """Philox4x32-10: four words below 2^32, as int64, for a 64-bit seed and counters of four 32-bit integers.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    mask = 0xFFFFFFFF
    c0, c1 = torch.broadcast_tensors(c0.long() & mask, c1.long() & mask)
    d = [c0, c1, torch.full_like(c0, c2), torch.full_like(c0, c3)]
    k0, k1 = seed & mask, seed >> 32 & mask
    for _ in range(10):
        a, b = d[0] * 0xD2511F53, d[2] * 0xCD9E8D57  # modulo 2^64: the shifted sign bits are masked away
        d = [(b >> 32 & mask) ^ d[1] ^ k0, b & mask, (a >> 32 & mask) ^ d[3] ^ k1, a & mask]
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return d


def rewiring_scores(weight: Tensor, group_size: int, group_score: str) -> Tensor:
    """|w| in float32, or its mean or maximum over each group, summed in the order of labels: ``[R, K]``."""
    magnitude = weight.float().abs()
    scores = magnitude[::group_size].clone()
    members = torch.ones(len(scores), 1, device=weight.device)
    for g in range(1, group_size):
        more = magnitude[g::group_size]
        part = scores[: len(more)]
        part.copy_(torch.where(more <= part, part, more) if group_score == "max" else part + more)
        members[: len(more)] += 1
    return scores if group_score == "max" else scores * (1 / members)


def _distinct_free_features(indices: Tensor, in_features: int, count: Tensor, seed: int, first_row: int) -> Tensor:
    """In the first ``count[r]`` columns of each row: distinct features out of those it does not hold, ``[R, K]``."""
    (R, K), free = indices.shape, in_features - indices.shape[1]
    rows = torch.arange(first_row, first_row + R, device=indices.device)
    ranks = torch.full((R, K), -1, device=indices.device)
    for i in range(int(count.max())):  # Floyd's algorithm: Bentley, Communications of the ACM 30(9), 1987
        word = philox(seed, rows, torch.tensor(i // 4, device=rows.device), 0, 1)[i % 4]
        last = free - count + i
        drawn = word * (last + 1) >> 32
        drawn = torch.where((ranks == drawn[:, None]).any(1), last, drawn)
        ranks[:, i] = torch.where(i < count, drawn, -1)
    held = torch.zeros(R, in_features, dtype=torch.bool, device=indices.device).scatter_(1, indices.long(), True)
    # a rank below D - K is itself a feature; where that is held, a free one from D - K on takes its place, in order
    feature = torch.arange(free, device=indices.device).repeat(R, 1)
    feature[held[:, :free]] = (~held[:, free:]).nonzero()[:, 1] + free
    return feature.gather(1, ranks.clamp(min=0))


@torch.no_grad()
def prune_regrow_(
    weight: Tensor,
    indices: Tensor,
    in_features: int,
    *,
    fraction: float | None = None,
    threshold: float | None = None,
    scope: str = "row",
    seed: int,
    state: Sequence[Tensor] = (),
    mean_state: Sequence[Tensor] = (),
    init: str = "zero",
    group_size: int = 1,
    group_score: str = "mean",
    first_row: int = 0,
) -> Tensor:
    """Random rewiring with the same numbers as the op, bit for bit (means in ``mean_state`` up to the order of sums).

    Holds ``[R, D]`` tables and waits for the device, unlike the op.
    """
    (L, K), R = weight.shape, num_index_rows(weight.shape[0], group_size)
    limit, seed = min(K, in_features - K), check_seed(seed)
    scores = rewiring_scores(weight, group_size, group_score)
    if threshold is not None:
        wanted = scores.double() < threshold
    elif fraction is not None and scope == "row":
        wanted = torch.arange(K, device=weight.device).expand(R, K) < math.floor(fraction * K)
    else:
        assert fraction is not None
        lowest = scores.flatten().sort(stable=True).indices[: math.floor(fraction * (R * K))]
        wanted = torch.zeros(R * K, dtype=torch.bool, device=weight.device).scatter_(0, lowest, True).view(R, K)
    count = wanted.sum(1).clamp(max=limit)
    if limit == 0 or not count.any():
        return count.sum()
    place_by_score = scores.argsort(dim=1, stable=True).argsort(dim=1)
    pruned = place_by_score < count[:, None]
    fresh = _distinct_free_features(indices, in_features, count, seed, first_row)
    fresh = fresh.gather(1, (pruned.cumsum(1) - 1).clamp(min=0))
    indices.copy_(torch.where(pruned, fresh, indices.long()))
    slots = pruned.repeat_interleave(group_size, dim=0)[:L]
    value = torch.zeros(L, K, device=weight.device)
    if init == "uniform":
        labels = torch.arange(L, device=weight.device)[:, None] + first_row * group_size
        k = torch.arange(K, device=weight.device)
        word = torch.stack(philox(seed, labels, k // 4, 0, 3)).gather(0, (k % 4).expand(1, L, K))[0]
        value = ((word >> 8).float() * 2.0**-23 - 1) * torch.tensor(1 / math.sqrt(K), device=weight.device)
    weight.copy_(torch.where(slots, value.to(weight.dtype), weight))
    for tensor in state:
        tensor.masked_fill_(slots, 0)
    for tensor in mean_state:
        tensor.copy_(torch.where(slots, tensor.double().mean(1, keepdim=True).float().to(tensor.dtype), tensor))
    return count.sum()
