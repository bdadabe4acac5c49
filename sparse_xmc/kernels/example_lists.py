"""Training rows of each label, from shortlists of each row: positives first, then rows that shortlist it wrongly."""

from sparse_xmc.kernels.compiled import kernel


@kernel
def count_examples(row_ptr, labels, shortlists, own, positives, negatives):
    """``own [L]`` is filled with -1; a label twice in a row's shortlists counts once."""
    # row_ptr [N + 1], labels [nnz], shortlists [N, S], -1 where there is none; own, positives, negatives [L]
    for i in range(len(row_ptr) - 1):
        for p in range(row_ptr[i], row_ptr[i + 1]):
            positives[labels[p]] += 1
            own[labels[p]] = i
        for s in range(shortlists.shape[1]):
            label = shortlists[i, s]
            if label >= 0 and own[label] != i:
                negatives[label] += 1
                own[label] = i


@kernel
def fill_examples(row_ptr, labels, shortlists, own, at_positive, at_negative, out):
    """Writes rows from the labels' offsets ``at_*`` on, which move along."""
    # as above; at_positive, at_negative [L], out [all examples]
    for i in range(len(row_ptr) - 1):
        for p in range(row_ptr[i], row_ptr[i + 1]):
            label = labels[p]
            out[at_positive[label]] = i
            at_positive[label] += 1
            own[label] = i
        for s in range(shortlists.shape[1]):
            label = shortlists[i, s]
            if label >= 0 and own[label] != i:
                out[at_negative[label]] = i
                at_negative[label] += 1
                own[label] = i


@kernel
def fill_within(label_ptr, label_rows, cluster_ptr, cluster_rows, of, step, own, ptr, out):
    """For each label its own rows, then every ``step``-th of the other rows of its cluster, from ``ptr[l]`` on.

    ``own [N]`` is filled with -1.
    """
    for label in range(len(of)):
        at, cluster, seen = ptr[label], of[label], 0
        for p in range(label_ptr[label], label_ptr[label + 1]):
            out[at] = label_rows[p]
            own[label_rows[p]] = label
            at += 1
        for p in range(cluster_ptr[cluster], cluster_ptr[cluster + 1]):
            if own[cluster_rows[p]] != label:
                if seen % step == 0:
                    out[at] = cluster_rows[p]
                    at += 1
                seen += 1
