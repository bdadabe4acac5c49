"""How a provider stores its layer, and what that layer is as a dense matrix: the bridge to the dense check."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Weights(ABC):
    """Parameters of a layer ``[L, D]`` in some storage."""

    bias: Tensor | None

    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The trainable weights (bias not included)."""

    @abstractmethod
    def index_tensors(self) -> list[Tensor]:
        """Tensors that say where the weights stand."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The layer as float64 ``[L, D]`` on the CPU."""

    @abstractmethod
    def project(self, dense_gradient: Tensor) -> list[Tensor]:
        """Gradients of ``tensors()`` from the gradient of ``matrix()``, float64."""

    @abstractmethod
    def multiplications(self) -> int:
        """Multiplications of one product with one row of the batch."""

    def parameters(self) -> list[Tensor]:
        return self.tensors() + ([] if self.bias is None else [self.bias])

    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.parameters() + self.index_tensors())


@dataclass
class EllWeights(Weights):
    """``weight [L, K]`` at the columns ``indices [ceil(L / G), K]``, in whatever form the provider needs."""

    weight: Tensor
    indices: Tensor
    in_features: int
    group_size: int = 1
    bias: Tensor | None = None
    stored_indices: tuple[Tensor, ...] | None = None

    def columns(self) -> Tensor:
        rows = torch.arange(self.weight.numel() // self.indices.shape[1]) // self.group_size
        return self.indices.cpu().long()[rows]

    def tensors(self) -> list[Tensor]:
        return [self.weight]

    def index_tensors(self) -> list[Tensor]:
        return [self.indices] if self.stored_indices is None else list(self.stored_indices)

    def matrix(self) -> Tensor:
        values = self.weight.detach().cpu().double().reshape(-1, self.indices.shape[1])
        dense = torch.zeros(values.shape[0], self.in_features, dtype=torch.float64)
        return dense.scatter_(1, self.columns(), values)

    def project(self, dense_gradient: Tensor) -> list[Tensor]:
        return [dense_gradient.gather(1, self.columns()).reshape(self.weight.shape)]

    def multiplications(self) -> int:
        return self.weight.numel()


@dataclass
class DenseWeights(Weights):
    """``weight [L, D]``; with ``mask`` only the elements where it is true exist (``stored`` elements in all)."""

    weight: Tensor
    bias: Tensor | None = None
    mask: Tensor | None = None
    stored: tuple[Tensor, ...] | None = None

    def tensors(self) -> list[Tensor]:
        return [self.weight] if self.stored is None else [self.stored[0]]

    def index_tensors(self) -> list[Tensor]:
        return [] if self.stored is None else list(self.stored[1:])

    def matrix(self) -> Tensor:
        return self.weight.detach().cpu().double()

    def project(self, dense_gradient: Tensor) -> list[Tensor]:
        return [dense_gradient if self.mask is None else dense_gradient * self.mask]

    def multiplications(self) -> int:
        return self.tensors()[0].numel()


@dataclass
class FactorWeights(Weights):
    """Low rank: ``up [L, r] @ down [r, D]``."""

    up: Tensor
    down: Tensor
    bias: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [self.up, self.down]

    def index_tensors(self) -> list[Tensor]:
        return []

    def matrix(self) -> Tensor:
        return self.up.detach().cpu().double() @ self.down.detach().cpu().double()

    def project(self, dense_gradient: Tensor) -> list[Tensor]:
        up, down = self.up.detach().cpu().double(), self.down.detach().cpu().double()
        return [dense_gradient @ down.t(), up.t() @ dense_gradient]

    def multiplications(self) -> int:
        return self.up.numel() + self.down.numel()
