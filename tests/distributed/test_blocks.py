"""label_blocks: contiguous, whole groups, balanced; errors that name the numbers."""

import pytest

from sparse_xmc.distributed import label_blocks


@pytest.mark.parametrize("L, P, G", [(10, 3, 1), (101, 4, 16), (7, 7, 1), (64, 2, 32), (33, 2, 32), (1000, 1, 7)])
def test_blocks_cover_the_labels_in_whole_groups(L, P, G):
    blocks = label_blocks(L, P, group_size=G)
    assert [label for block in blocks for label in block] == list(range(L))
    assert len(blocks) == P and all(block.start % G == 0 for block in blocks)
    groups = [-(-len(block) // G) for block in blocks]
    assert max(groups) - min(groups) <= 1 and min(groups) >= 1


def test_given_sizes():
    assert label_blocks(10, 3, sizes=[2, 7, 1]) == [range(2), range(2, 9), range(9, 10)]
    assert label_blocks(10, 2, group_size=4, sizes=[8, 2]) == [range(8), range(8, 10)]


@pytest.mark.parametrize(
    "L, P, G, sizes, message",
    [
        (5, 8, 1, None, "5 labels in groups of 1 make 5 groups, too few for 8 ranks"),
        (64, 4, 32, None, "make 2 groups"),
        (10, 2, 1, [5, 4], "add up to 10"),
        (10, 2, 1, [10], "hold 2"),
        (10, 2, 1, [10, 0], "positive"),
        (10, 2, 4, [5, 5], "group_size=4"),
        (0, 2, 1, None, "out_features"),
    ],
)
def test_errors(L, P, G, sizes, message):
    with pytest.raises(ValueError, match=message):
        label_blocks(L, P, group_size=G, sizes=sizes)
