import numpy as np
import pytest
import scipy.sparse as sp


@pytest.fixture(scope="package")
def topics():
    """600 rows of 12 of 300 terms, 40 labels of two to a hundred rows: each label has four terms of its own."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 41)
    x, y = sp.lil_matrix((600, 300), dtype=np.float32), sp.lil_matrix((600, 40), dtype=np.float32)
    for i in range(600):
        for label in np.unique(rng.choice(40, rng.integers(1, 4), p=shares / shares.sum())):
            y[i, label] = 1
            for term in rng.choice(4, 3, replace=False):
                x[i, 4 * label + term] = rng.random() + 0.5
        for term in rng.integers(160, 300, 6):
            x[i, term] = rng.random()
    x = sp.csr_matrix(x)
    norms = np.sqrt(np.asarray(x.multiply(x).sum(1)).ravel())
    x = sp.csr_matrix(sp.diags(1 / norms) @ x, dtype=np.float32)
    x.sort_indices()
    return x, y.tocsr()
