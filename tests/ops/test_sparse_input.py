"""CPU kernels of the layer over sparse rows, beneath what ``tests/models/test_sparse_input.py`` shows."""

import numpy as np
import pytest

pytest.importorskip("numba")


@pytest.mark.parametrize("loss", ["_bce", "_squared_hinge"])
@pytest.mark.parametrize("batch", [8, 16, 33, 100])
def test_a_loss_does_not_depend_on_where_its_memory_lies(batch, loss):
    """LLVM runs a loop over two arrays scalar where they may overlap, and a sum then adds up in another order."""
    from sparse_xmc.ops.cpu_kernels import sparse_input

    z = (np.random.default_rng(0).standard_normal(batch) * 3).astype(np.float32)
    found = set()
    for distance in (-300, -batch - 33, -batch, batch, batch + 1, batch + 40, 300):
        memory = np.zeros(1000, np.float32)
        own, slope = memory[400 : 400 + batch], memory[400 + distance : 400 + distance + batch]
        own[:] = z
        found.add((float(getattr(sparse_input, loss)(own, slope)), slope.tobytes()))
    assert len(found) == 1
