"""Layers whose connections reach a kernel only after they were validated."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sparse_xmc.ops._arguments import INDEX_DTYPES, validate_indices

SelfT = TypeVar("SelfT", bound="CheckedIndices")
Groups = tuple[dist.ProcessGroup, ...]

_HASHED_ROWS = 65_536  # rows of indices that a fingerprint takes at a time
_SCRAMBLE = (0x9E3779B97F4A7C15 - (1 << 64), 0x2545F4914F6CDD1D)  # odd multipliers of 64-bit mixers


class _State(NamedTuple):
    """A tensor in one state: which object, how often written (None: it does not count), where its memory begins."""

    tensor: Callable[[], Tensor | None]
    version: int | None
    address: int


_NEVER = _State(lambda: None, 0, 0)


def _state_of(tensor: Tensor) -> _State:
    return _State(weakref.ref(tensor), None if tensor.is_inference() else tensor._version, tensor.data_ptr())


def _is_readable(tensor: Tensor) -> bool:
    """Whether it holds values: meta tensors and those of a trace do not."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta


def fingerprint(indices: Tensor) -> int:
    """A 64-bit hash of all indices and their places. Waits for the device."""
    total, columns = 0, torch.arange(indices.shape[1], device=indices.device)
    for start in range(0, indices.shape[0], _HASHED_ROWS):
        part = indices[start : start + _HASHED_ROWS].long()
        rows = torch.arange(start, start + part.shape[0], device=indices.device)
        mixed = (part + (rows[:, None] * indices.shape[1] + columns) * _SCRAMBLE[0]) * _SCRAMBLE[1]
        total += int(((mixed ^ (mixed >> 29)) * _SCRAMBLE[0]).sum())
    return total % (1 << 64)


_LAYERS: weakref.WeakValueDictionary[str, CheckedIndices] = weakref.WeakValueDictionary()  # by name, while they live
_NUMBERS = itertools.count()


class CheckedIndices(nn.Module):
    """A layer with a buffer ``indices [R, K]`` that it hands out by ``checked_indices`` only.

    What the layer itself writes (drawing, loading, rewiring) is valid. Anything else that changes the tensor (a framework's
    loader, an in-place edit, a move) shows in the tensor's identity, version or address, which are compared at every use;
    only after a change are the values read, which waits for the device. Memory that was never written, as ``to_empty``
    leaves it behind, is an error at the first use. Compiled programs are checked when they are traced. Writes through
    ``indices.data`` or NumPy are counted by nobody: call ``validate`` after them, or set ``SPARSE_XMC_DEBUG=1``, which
    validates at every call.

    A deep copy remembers its connections: where something else writes others into them it is taken for an average of models
    (``torch.optim.swa_utils.AveragedModel`` and its kin), whose weights then belong to several connections at once.
    ``update_average_`` makes such averages.
    """

    in_features: int
    indices: Tensor
    _seen: _State = _NEVER
    _unwritten: dict[str, _State | None]
    _copied: int | None = None
    _holds_part: bool = False  # other ranks hold other labels of the same head
    _replicas: Groups | None = None
    _join_mesh: ClassVar[Callable[[Any, Groups], None]]  # of ``models.replicas``

    def __init__(self) -> None:
        super().__init__()
        self._unwritten = {}
        self._enter()

    def _enter(self) -> None:
        self._trace_name = f"layer {next(_NUMBERS)}"
        _LAYERS[self._trace_name] = self

    def __setattr__(self, name: str, value: Any) -> None:
        if type(value).__name__ == "DTensor" and name in self._parameters:
            self._parameters[name] = value  # fully_shard cuts a parameter, but leaves every rank its own buffers
            CheckedIndices._join_mesh(self, tuple(value.device_mesh.get_all_groups()))
        else:
            super().__setattr__(name, value)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuses what ``distribute_module`` and tensor parallelism put in the place of a parameter."""
        if type(param).__name__ == "DTensor":
            raise TypeError(
                f"the {name} of a {type(self).__name__} can't become a DTensor: distributed.LabelShardedLinear spreads labels "
                "over ranks, fully_shard cuts whole models"
            )
        super().register_parameter(name, param)

    def checked_indices(self) -> Tensor:
        """``indices``, valid: in range and distinct within a row.

        Raises:
            ValueError: they are not.
            RuntimeError: a tensor of the layer holds memory that nothing was written to, or the layer is a copy whose
                connections were overwritten from outside.
        """
        if torch.compiler.is_compiling():
            return self._traced_indices()
        indices = self._buffers.get("indices")
        seen, version, address = self._seen
        if (
            indices is None
            or seen() is not indices
            or (version is not None and indices._version != version)
            or indices.data_ptr() != address
        ):
            self._check(self.indices)
            return self.indices
        return indices

    def validate(self) -> None:
        """Reads all connections, whatever is remembered of them; for edits that torch does not count. Waits for the device.

        Raises:
            ValueError, RuntimeError: as ``checked_indices``.
        """
        self._seen = _NEVER
        self._check(self.indices)

    def _traced_indices(self) -> Tensor:
        # the dictionary is read here so that a compiled program is traced anew when it is filled
        _check_while_tracing(self._trace_name, len(self._unwritten))
        return self.indices

    def _check_written(self) -> None:
        missing = self._missing()
        if missing:
            raise RuntimeError(
                f"uninitialised memory in {' and '.join(missing)} of this {type(self).__name__} (it was made on the meta "
                "device, or emptied): call reset_parameters() or load a state dict first"
            )

    def _check(self, indices: Tensor) -> None:
        if not _is_readable(indices):
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(indices):
            raise RuntimeError(
                "torch.func takes no layers with connections of their own side by side (stack_module_state): call them one "
                "after another"
            )
        self._check_written()
        if indices.dtype not in INDEX_DTYPES:
            raise TypeError(f"indices must be of {' or '.join(map(str, INDEX_DTYPES))}, got {indices.dtype}")
        if self._copied is not None and fingerprint(indices) != self._copied:
            raise RuntimeError(
                f"the indices of this copy of a {type(self).__name__} were overwritten in place: an average of models mixes "
                "the weights of different connections once they were rewired, and must never average indices. Use "
                "models.update_average_(average, model, decay), AveragedModel(use_buffers=False) without rewiring, or "
                "load_state_dict to replace the layer"
            )
        validate_indices(indices, self.in_features)
        self._unwritten = {}
        self._seen = _state_of(indices)

    def _missing(self) -> list[str]:
        """Names of tensors that hold memory which nobody wrote to."""
        found = []
        for name, state in self._unwritten.items():
            marked = None if state is None else state.tensor()
            if state is None or marked is None or not _same(state, marked):
                continue
            tensor = getattr(self, name)
            if tensor is marked or not (tensor is None or _is_readable(tensor)):  # or stands for it in a trace
                found.append(name)
        return found

    def _mark_unwritten(self, *names: str) -> None:
        """These tensors of the layer hold no values yet; on the meta device, they never do."""
        for name in names:
            tensor = getattr(self, name)
            if tensor is not None:
                self._unwritten = {**self._unwritten, name: _state_of(tensor) if _is_readable(tensor) else None}
        self._seen = _NEVER

    def _mark_written(self, *names: str) -> None:
        """The layer has written valid values to these tensors."""
        self._unwritten = {name: state for name, state in self._unwritten.items() if name not in names}
        if "indices" in names and _is_readable(self.indices):
            if not self._unwritten:
                self._seen = _state_of(self.indices)
            self._mark_copied()

    def _mark_copied(self) -> None:
        """If the layer is a copy, its connections are now these."""
        if self._copied is not None:
            self._copied = fingerprint(self.indices)

    def _tensors(self) -> dict[str, Tensor]:
        named = {**self._parameters, **self._buffers}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def _keeps_dtype(self, tensor: Tensor) -> bool:
        """Whether casts of the module leave this tensor as it is."""
        return not tensor.is_floating_point()

    def _apply(self: SelfT, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SelfT:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype != tensor.dtype and self._keeps_dtype(tensor) else moved

        before, missing = self._tensors(), self._missing()
        emptied = [name for name, tensor in before.items() if tensor.is_meta]
        super()._apply(move, recurse)
        after = self._tensors()
        lost = [name for name in emptied + missing if not after[name].is_meta]
        if lost:
            self._mark_unwritten(*lost)
        elif after["indices"] is not before["indices"] and _is_readable(after["indices"]):
            self._seen = _state_of(after["indices"])._replace(address=-1)  # to be validated at the next use
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Call it with validated indices; what the state dict holds counts as written."""
        shapes, missing = {name: tensor.shape for name, tensor in self._tensors().items()}, self._missing()
        # torch.__future__.set_swap_module_params_on_conversion swaps no tensor that something refers to weakly
        self._seen = _NEVER
        self._unwritten = {name: state for name, state in self._unwritten.items() if name not in missing}
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._mark_unwritten(*missing)
        given = {name: state_dict.get(prefix + name) for name in shapes}
        self._mark_written(
            *(name for name, value in given.items() if isinstance(value, Tensor) and value.shape == shapes[name])
        )

    def _check_replicable(self, name: str) -> None:
        """Raises if a wrapper must not take the ranks' layers for copies of one."""
        if self._holds_part:
            raise RuntimeError(
                f"{name} holds this rank's labels of a LabelShardedLinear, which DistributedDataParallel and fully_shard take "
                "for a copy of those of rank 0: leave the head out, see LabelShardedLinear"
            )

    def _draw(self, names: list[str]) -> None:
        """Gives these tensors the values of a new layer."""
        raise NotImplementedError

    @property
    def _is_hf_initialized(self) -> bool:
        """Asked by ``transformers`` whether ``_init_weights``, which does not know the layer, has to see to it.

        ``from_pretrained`` makes models on the meta device and asks once the weights that were found are in place: what
        is missing then is drawn here.
        """
        tensors = self._tensors()
        missing = [name for name in self._unwritten if not getattr(tensors[name], "_is_hf_initialized", False)]
        if not any(tensor.is_meta for tensor in tensors.values()):
            if missing:
                self._draw(missing)
            self._unwritten = {}
        return True

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        """The layer answers for itself."""

    def __getstate__(self) -> dict[str, Any]:
        tensors, missing = self._tensors(), self._missing()
        empty = {name: None for name in self._unwritten if name in missing or tensors[name].is_meta}
        of_this_object = ("_seen", "_copied", "_replicas", "_trace_name")
        return {
            **{name: value for name, value in self.__dict__.items() if name not in of_this_object},
            "_unwritten": empty,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({"_unwritten": {}, **state})
        self._enter()
        if self.indices.dtype == torch.int16:  # pickles of earlier versions
            self.indices = self.indices.view(torch.uint16)
        self._mark_unwritten(*self._unwritten)

    def __deepcopy__(self: SelfT, memo: dict[int, Any]) -> SelfT:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        state = CheckedIndices.__getstate__(self)  # a parametrized module's own refuses
        clone.__setstate__(copy.deepcopy(state, memo))
        if _is_readable(clone.indices) and not clone._unwritten:
            clone._copied = fingerprint(clone.indices)
        return clone


def _same(state: _State, tensor: Tensor) -> bool:
    return state.tensor() is tensor and state[1:] == _state_of(tensor)[1:]


@torch.compiler.assume_constant_result
def _check_while_tracing(name: str, unwritten: int) -> bool:
    """Runs once per trace, on the real tensors; adds nothing to the program. (torch 2.11 takes no module for a constant.)"""
    layer = _LAYERS[name]
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        return _check_real(layer, unwritten)


def _check_real(layer: CheckedIndices, unwritten: int) -> bool:
    indices: Tensor | None = layer.indices
    if indices is not None and not _is_readable(indices):  # traced on fake tensors: the real ones are those last seen
        indices = layer._seen.tensor()
        if unwritten:
            layer._check_written()
    if indices is not None and not _same(layer._seen, indices):
        layer._check(indices)
    return True
