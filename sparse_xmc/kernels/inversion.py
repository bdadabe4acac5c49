"""The connections of a head by term in place of by label."""

from sparse_xmc.kernels.compiled import kernel


@kernel
def count_readers(indices, weights, counts):
    """Adds to ``counts [D]`` how many labels read each term with a weight other than 0."""
    for i in range(indices.shape[0]):
        for k in range(indices.shape[1]):
            counts[indices[i, k]] += weights[i, k] != 0


@kernel
def place_readers(labels, indices, weights, at, out_labels, out_weights):
    """Writes the readers of each term from ``at [D]`` on, which moves along."""
    for i in range(indices.shape[0]):
        for k in range(indices.shape[1]):
            if weights[i, k] != 0:
                p = at[indices[i, k]]
                out_labels[p] = labels[i]
                out_weights[p] = weights[i, k]
                at[indices[i, k]] = p + 1
