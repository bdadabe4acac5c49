"""How the labels of a head are cut into contiguous blocks, one for each rank."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from sparse_xmc.ops._arguments import check_positive_int, num_index_rows


def label_blocks(
    out_features: int, num_ranks: int, *, group_size: int = 1, sizes: Sequence[int] | None = None
) -> list[range]:
    """The labels of every rank: contiguous, ascending, each block a whole number of groups (the last may end short).

    Args:
        out_features: ``L``, labels of the whole head.
        num_ranks: number of blocks. It need not divide ``L``: blocks differ by at most one group.
        group_size: ``G``, number of neighbouring labels that share a row of indices.
        sizes: labels of every rank, where ranks are to hold unequal shares.

    Raises:
        ValueError: fewer groups of labels than ranks, or ``sizes`` that do not add up to ``L``, leave a rank empty or
            cut through a group.

    Examples:
        >>> from sparse_xmc.distributed import label_blocks
        >>> label_blocks(10, 3)
        [range(0, 4), range(4, 7), range(7, 10)]
    """
    for name, value in (("out_features", out_features), ("num_ranks", num_ranks), ("group_size", group_size)):
        check_positive_int(name, value)
    if sizes is None:
        groups = num_index_rows(out_features, group_size)
        if groups < num_ranks:
            raise ValueError(
                f"{out_features} labels in groups of {group_size} make {groups} groups, too few for {num_ranks} ranks: "
                "use fewer ranks along the label dimension"
            )
        share, rest = divmod(groups, num_ranks)
        sizes = [(share + (rank < rest)) * group_size for rank in range(num_ranks)]
        sizes[-1] -= sum(sizes) - out_features
    else:
        sizes = list(sizes)
        cut = [size for size in sizes[:-1] if size % group_size]
        if len(sizes) != num_ranks or sum(sizes) != out_features or min(sizes) < 1 or cut:
            raise ValueError(
                f"sizes must hold {num_ranks} positive numbers of labels that add up to {out_features}, all but the "
                f"last multiples of group_size={group_size}, got {sizes}"
            )
    return [range(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]
