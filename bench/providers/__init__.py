"""The providers, one module per family. Importing this package registers them all."""

from bench.providers import sparse_xmc  # isort: skip  first: it leads tables and legends
from bench.providers import block_sparse, dense, eager_rewire, embedding_bag, gather, haste, python_sparse, torch_sparse

__all__ = [
    "block_sparse",
    "dense",
    "eager_rewire",
    "embedding_bag",
    "gather",
    "haste",
    "python_sparse",
    "sparse_xmc",
    "torch_sparse",
]
