"""The providers, one module per family. Importing this package registers them all."""

from bench.providers import dense, embedding_bag, sparse_xmc, torch_sparse

__all__ = ["dense", "embedding_bag", "sparse_xmc", "torch_sparse"]
