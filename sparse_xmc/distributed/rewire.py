"""A part's share of a global choice of weak connections, from histograms summed over the ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sparse_xmc.distributed.ranks import Ranks
from sparse_xmc.models import FixedFanInLinear
from sparse_xmc.models.rewire import rewire_layer_
from sparse_xmc.ops._arguments import num_index_rows

_CHUNK = 1 << 22  # weights whose scores are held at a time
_LOW = 16  # low bits of a score's float32 pattern, which the second histogram resolves


def _scores(weight: Tensor, group_size: int, group_score: str) -> Iterator[Tensor]:
    """Bit patterns of the scores of ``ops.prune_regrow_``, which sort as the scores do, in chunks of int32."""
    step = max(1, _CHUNK // (weight.shape[1] * group_size)) * group_size
    for start in range(0, len(weight), step):
        magnitude = weight[start : start + step].abs().float()
        if group_size > 1:
            groups = len(magnitude) // group_size
            whole = magnitude[: groups * group_size].view(groups, group_size, weight.shape[1])
            parts = [_combine(whole, group_score)] if groups else []
            if len(magnitude) % group_size:
                parts.append(_combine(magnitude[groups * group_size :][None], group_score))
            magnitude = torch.cat(parts)
        yield magnitude.view(torch.int32).flatten()


def _combine(groups: Tensor, group_score: str) -> Tensor:
    """``[groups, members, K]`` to ``[groups, K]``, summed in the order of members as the kernels do."""
    if group_score == "max":
        return groups.amax(1)
    total = groups[:, 0].clone()
    for member in range(1, groups.shape[1]):
        total += groups[:, member]
    return total * (1 / total.new_tensor(float(groups.shape[1])))


def share_of_lowest(weight: Tensor, group_size: int, group_score: str, number: int, ranks: Ranks) -> int:
    """How many of the ``number`` lowest scores of all ranks' weights lie in this rank's; ties go to the first ranks.

    Two all-reduces of 512 KiB: histograms of the high and, within the bin that decides, of the low bits.
    """
    prefix, below = -1, 0
    for _ in range(2):
        histogram = torch.zeros(1 << _LOW, dtype=torch.int64, device=weight.device)
        for keys in _scores(weight, group_size, group_score):
            high = keys >> _LOW
            counted = high if prefix < 0 else keys[high == prefix] & ((1 << _LOW) - 1)
            histogram += torch.bincount(counted, minlength=1 << _LOW)
        mine = histogram.cumsum(0)
        everyone = ranks.sum_(histogram, "sum of the magnitude histograms").cumsum(0)
        chosen = int(torch.searchsorted(everyone, number - below))
        before = int(everyone[chosen - 1]) if chosen else 0
        mine_before = int(mine[chosen - 1]) if chosen else 0
        if prefix < 0:
            prefix, below, mine_below = chosen, before, mine_before
        else:
            below, mine_below = below + before, mine_below + mine_before
            ties = int(mine[chosen]) - mine_before
    left = number - below
    for (other,) in ranks.gather_integers([ties], "count of equal magnitudes")[: ranks.rank]:
        left -= other
    return mine_below + min(ties, max(0, left))


def rewire_shard_(
    shard: FixedFanInLinear,
    blocks: Sequence[range],
    ranks: Ranks,
    *,
    fraction: float | None = None,
    scope: str = "row",
    group_score: str = "mean",
    **options: Any,
) -> Tensor:
    """Rewires this rank's part so that all parts together change as the whole layer would."""
    if fraction is not None and scope == "global":
        R = sum(num_index_rows(len(block), shard.group_size) for block in blocks)
        weakest = math.floor(fraction * (R * shard.fan_in))
        options["number"] = share_of_lowest(shard.weight.detach(), shard.group_size, group_score, weakest, ranks)
    first_row = blocks[ranks.rank].start // shard.group_size
    rewired = rewire_layer_(
        shard, fraction=fraction, scope=scope, group_score=group_score, first_row=first_row, **options
    )
    return ranks.sum_(rewired, "count of the rewired connections")
