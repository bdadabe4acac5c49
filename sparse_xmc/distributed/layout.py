"""Where a rank's tensors have their place in the whole model: names, blocks of rows, settings of optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse_xmc.distributed.linear import LabelShardedLinear
from sparse_xmc.ops._arguments import num_index_rows
from sparse_xmc.storage.tensor_file import Block


class Layout:
    """Names and places of a model's tensors in the whole model.

    Attributes:
        blocks: this rank's rows of the tensors that are spread, by their names in a checkpoint.
        parameters: names of the parameters in a checkpoint.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.heads = {name: layer for name, layer in model.named_modules() if isinstance(layer, LabelShardedLinear)}
        self.blocks = {f"model.{name}": block for name, block in self.model_blocks().items()}
        self.parameters = {f"model.{self._place(name)[0]}" for name, _ in model.named_parameters()}

    def _place(self, name: str) -> tuple[str, LabelShardedLinear | None]:
        """Name of a tensor in the whole model, and the sharded head that it belongs to."""
        for prefix, head in self.heads.items():
            shard = f"{prefix}.shard." if prefix else "shard."
            if name.startswith(shard):
                return (f"{prefix}." if prefix else "") + name[len(shard) :], head
        return name, None

    def whole_state(self) -> dict[str, Tensor]:
        """This rank's state dict under the names of the whole model."""
        return {self._place(name)[0]: tensor.detach() for name, tensor in self.model.state_dict().items()}

    def model_blocks(self) -> dict[str, Block]:
        """This rank's rows of the tensors of ``whole_state`` that are spread."""
        placed = [self._place(name) for name in self.model.state_dict()]
        return {
            name: block(head, head.group_size if name.endswith("indices") else 1)
            for name, head in placed
            if head is not None
        }

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules with the beginning of their tensors' names in the whole model."""
        for name, layer in self.model.named_modules():
            whole, _ = self._place(f"{name}." if name else "")
            yield whole, layer

    def model_state(self) -> dict[str, Tensor]:
        return {f"model.{name}": tensor for name, tensor in self.whole_state().items()}

    def parameters_of(self, optimizer: Optimizer) -> list[tuple[str, LabelShardedLinear | None, Tensor]]:
        """An optimizer's parameters in its order: name in the whole model, sharded head, tensor."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        found = []
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in names:
                    raise ValueError(f"an optimizer holds a parameter {list(parameter.shape)} that is not the model's")
                found.append((*self._place(names[id(parameter)]), parameter))
        return found

    def optimizer_state(self, key: str, optimizer: Optimizer) -> dict[str, Tensor]:
        """The state's tensors by name; ``blocks`` then knows those that are spread."""
        state = {}
        for name, head, parameter in self.parameters_of(optimizer):
            for kind, value in optimizer.state.get(parameter, {}).items():
                if value is None:
                    continue
                tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
                whole = f"optimizer.{key}.{name}/{kind}"
                state[whole] = tensor
                if head is not None and tensor.ndim and len(tensor) == len(parameter):
                    self.blocks[whole] = block(head)
        return state

    def optimizer_blocks(self, optimizers: Mapping[str, Optimizer]) -> dict[str, Block]:
        """Blocks by how the names of the state's tensors begin, for state that is only to be read."""
        return {
            f"optimizer.{key}.{name}/": block(head)
            for key, optimizer in optimizers.items()
            for name, head, _ in self.parameters_of(optimizer)
            if head is not None
        }

    def restore_optimizer_(
        self, key: str, optimizer: Optimizer, groups: list[dict[str, Any]], tensors: Mapping[str, Tensor]
    ) -> None:
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            for name, value in saved.items():
                if name != "params":
                    group[name] = tuple(value) if isinstance(group.get(name), tuple) else value
        for name, _, parameter in self.parameters_of(optimizer):
            prefix = f"optimizer.{key}.{name}/"
            optimizer.state.pop(parameter, None)
            for entry, tensor in tensors.items():
                if entry.startswith(prefix):
                    device = parameter.device if tensor.ndim else "cpu"
                    optimizer.state[parameter][entry[len(prefix) :]] = tensor.to(device)

    def group_settings(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        names = iter(name for name, _, _ in self.parameters_of(optimizer))
        settings = []
        for group in optimizer.param_groups:
            plain = {key: _plain(value) for key, value in group.items() if key != "params"}
            settings.append({**plain, "params": [next(names) for _ in group["params"]]})
        return settings

    def check_groups(self, key: str, optimizer: Optimizer, stored: Mapping[str, Any]) -> None:
        """Raises:
        ValueError: the checkpoint has no such optimizer, or it had other parameter groups.
        """
        mine = self.group_settings(optimizer)
        if key not in stored:
            raise ValueError(f"the checkpoint holds no optimizer {key!r}, only {sorted(stored)}")
        if [group["params"] for group in mine] != [group.get("params") for group in stored[key]]:
            raise ValueError(f"optimizer {key!r} has other parameter groups than the checkpoint's")


def block(head: LabelShardedLinear, per_row: int = 1) -> Block:
    """This rank's rows of a tensor of the head that has a row for every ``per_row`` labels."""
    first = head.labels.start // per_row
    rows = range(first, first + num_index_rows(len(head.labels), per_row))
    return Block(rows, num_index_rows(head.out_features, per_row))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
