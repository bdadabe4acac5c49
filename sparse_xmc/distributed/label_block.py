"""A rank's block of a tensor that is cut along its first dimension, as ``torch.distributed.checkpoint`` sees it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


class LabelBlock(Tensor):
    """Rows ``first`` to ``first + len(local)`` of a tensor of ``num_rows`` rows; shares memory with ``local``.

    DTensor cannot say this: it cuts a dimension into equal blocks, and label blocks are multiples of the group size.
    """

    _first: int
    _num_rows: int

    @classmethod
    def of(cls, local: Tensor, first: int, num_rows: int) -> LabelBlock:
        block = local.detach().as_subclass(cls)
        block._first, block._num_rows = first, num_rows
        return block

    def size(self, dim: int | None = None) -> Any:
        """Size of the whole tensor, as with DTensor: what a checkpoint is compared with. ``shape`` is the block's."""
        whole = torch.Size([self._num_rows, *self.shape[1:]])
        return whole if dim is None else whole[dim]

    def _plain(self) -> Tensor:
        return self.as_subclass(Tensor)

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(offsets=torch.Size([self._first] + [0] * (self.ndim - 1)), sizes=self.shape)

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [self._chunk()]

    def __create_write_items__(self, fqn: str, _: Any) -> list[WriteItem]:
        chunk = self._chunk()
        data = TensorWriteData(
            chunk=chunk,
            properties=TensorProperties.create_from_tensor(self._plain()),
            size=self.size(),
        )
        return [WriteItem(index=MetadataIndex(fqn, chunk.offsets), type=WriteItemType.SHARD, tensor_data=data)]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return self._plain()
