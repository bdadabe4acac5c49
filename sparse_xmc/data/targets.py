"""Targets for the heads' losses from the lists of label ids that people have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def targets_from_lists(lists: Sequence[Any], num_labels: int) -> Tensor:
    """The targets of ``lists[i]``, the label ids of row ``i``, as a ``torch.sparse_csr`` matrix ``[N, num_labels]``.

    A head's ``loss`` takes such lists as well; a matrix made once (per data set or in a loader's worker) is checked once.

    Args:
        lists: a list, set, NumPy array or 1-D tensor of integers for every row; a row may be empty. A label that stands
            twice in a row counts once.
        num_labels: ``L``; ids lie in ``[0, L)``.

    Raises:
        TypeError: ids that are no integers, rows that are no lists; the message names the row.
        ValueError: an id outside ``[0, L)``, with its value and row.

    Examples:
        >>> from sparse_xmc.data import targets_from_lists
        >>> targets = targets_from_lists([[3, 17], [], [5]], num_labels=100)
        >>> targets.shape, targets.crow_indices()
        (torch.Size([3, 100]), tensor([0, 2, 2, 3]))
    """
    from sparse_xmc.ops._arguments import check_positive_int
    from sparse_xmc.ops._target_forms import csr_of_lists

    check_positive_int("num_labels", num_labels)
    if isinstance(lists, (str, bytes)) or not hasattr(lists, "__len__"):
        raise TypeError(f"lists must be a sequence with the label ids of every row, got {type(lists).__name__}")
    return csr_of_lists(lists, num_labels)
