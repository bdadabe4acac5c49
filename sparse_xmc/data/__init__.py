"""File formats, labels, text features and batches."""

# ruff: noqa: E402
from sparse_xmc._extras import require

require("scipy")

from sparse_xmc.data.batches import DenseInputs, Inputs, SparseInputs, TokenInputs, sorted_targets, to_torch_csr
from sparse_xmc.data.errors import DataError
from sparse_xmc.data.filters import read_filter
from sparse_xmc.data.labels import LabelRows, LabelVocabulary
from sparse_xmc.data.records import Records
from sparse_xmc.data.split import Features, TextSource, open_split
from sparse_xmc.data.targets import targets_from_lists
from sparse_xmc.data.tfidf import TfidfFeatures
from sparse_xmc.data.tokens import TokenCache, TokenRows

__all__ = [
    "DataError",
    "DenseInputs",
    "Features",
    "Inputs",
    "LabelRows",
    "LabelVocabulary",
    "Records",
    "SparseInputs",
    "TextSource",
    "TfidfFeatures",
    "TokenCache",
    "TokenInputs",
    "TokenRows",
    "open_split",
    "read_filter",
    "sorted_targets",
    "targets_from_lists",
    "to_torch_csr",
]
