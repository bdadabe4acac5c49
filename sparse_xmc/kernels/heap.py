"""The best ``n`` of a stream of scored items, as a heap in two arrays whose first entry is the worst one kept.

An item is better if its score is higher, or equal with the smaller number: the result does not depend on the order.
"""

from numba.extending import register_jitable


@register_jitable
def _worse(score, item, other_score, other_item):
    return score < other_score or (score == other_score and item > other_item)


@register_jitable
def sift_down(scores, items, i, n):
    # scores, items [n]
    score, item = scores[i], items[i]
    while True:
        j = 2 * i + 1
        if j >= n:
            break
        if j + 1 < n and _worse(scores[j + 1], items[j + 1], scores[j], items[j]):
            j += 1
        if not _worse(scores[j], items[j], score, item):
            break
        scores[i], items[i] = scores[j], items[j]
        i = j
    scores[i], items[i] = score, item


@register_jitable
def offer(scores, items, score, item):
    """Keeps the item if it is better than the worst one."""
    # scores, items [n]
    if _worse(scores[0], items[0], score, item):
        scores[0], items[0] = score, item
        sift_down(scores, items, 0, len(scores))


@register_jitable
def sort_best_first(scores, items):
    # scores, items [n]
    for n in range(len(scores) - 1, 0, -1):
        scores[0], scores[n] = scores[n], scores[0]
        items[0], items[n] = items[n], items[0]
        sift_down(scores, items, 0, n)


@register_jitable
def keep_best(scores, best, kept):
    """The best ``len(best)`` of all scores, best first, and their places."""
    # scores [n], best, kept [S]
    S = len(best)
    for j in range(S):
        best[j] = scores[j]
        kept[j] = j
    for j in range(S // 2 - 1, -1, -1):
        sift_down(best, kept, j, S)
    for j in range(S, len(scores)):
        if scores[j] > best[0]:  # an equal score with a larger number is no better
            offer(best, kept, scores[j], j)
    sort_best_first(best, kept)
