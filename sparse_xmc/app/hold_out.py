"""A share of the training rows kept from the model, to learn from them what its scores mean."""

from __future__ import annotations

import numpy as np

from sparse_xmc.data import DenseInputs, Inputs, LabelRows, SparseInputs, TokenInputs, TokenRows

Split = tuple[Inputs, LabelRows]


def hold_out(inputs: Inputs, rows: LabelRows, share: float, seed: int) -> tuple[Split, Split]:
    """``(kept, held out)``: about ``share`` of the rows are held out, but never a label's last one.

    Raises:
        ValueError: no row can be held out.
    """
    labels = np.frombuffer(rows.ids, dtype=np.int64)
    left = np.bincount(labels, minlength=len(rows.names))
    wanted = round(share * len(rows))
    held: list[int] = []
    for row in np.random.default_rng(seed).permutation(len(rows)):
        if len(held) >= wanted:
            break
        own = labels[rows.offsets[row] : rows.offsets[row + 1]]
        if (left[own] > 1).all():
            left[own] -= 1
            held.append(row)
    if not held:
        raise ValueError(
            f"calibration_share={share} holds out no row: of {len(rows)} rows, each has a label's last one, or the share "
            "is less than a row"
        )
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[held] = True
    kept = np.flatnonzero(~chosen)
    out = np.flatnonzero(chosen)
    return (_inputs(inputs, kept), _rows(rows, kept)), (_inputs(inputs, out), _rows(rows, out))


def _inputs(inputs: Inputs, chosen: np.ndarray) -> Inputs:
    if isinstance(inputs, SparseInputs):
        return SparseInputs(inputs.matrix[chosen])
    if isinstance(inputs, DenseInputs):
        return DenseInputs(inputs.array[chosen])
    assert isinstance(inputs, TokenInputs)
    offsets, ids = inputs.cache.offsets, inputs.cache.ids
    texts = [ids[offsets[row] : offsets[row + 1]] for row in chosen]
    new = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return TokenInputs(TokenRows(new, np.concatenate([ids[:0], *texts])), inputs.pad_id)


def _rows(rows: LabelRows, chosen: np.ndarray) -> LabelRows:
    result = LabelRows()
    for row in chosen:
        result.append(rows.row(row))
    return result
