"""Plain pickles of 16-bit unsigned and 8-bit float tensors, which torch writes but cannot read back.

Tensors of torch's newer dtypes are pickled with a bare ``UntypedStorage``, and reading that fails inside of torch ("type
object 'torch.storage.UntypedStorage' has no attribute 'dtype'"). Everything that pickles without ``torch.save`` meets this:
``pickle``, joblib, cloudpickle, ``broadcast_object_list``. Here such storages are given to pickle as tensors of bytes. What is
written needs torch alone to be read; ``torch.save``, ``copy.deepcopy`` and ``torch.multiprocessing`` have ways of their own
and never come here.
"""

from __future__ import annotations

import copyreg
import operator
from typing import Any

import torch


def _reduce_storage(storage: torch.UntypedStorage) -> tuple[Any, tuple[torch.Tensor]]:
    octets = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return operator.methodcaller("_typed_storage"), (octets,)


def register() -> None:
    """Makes pickle use it, for this process."""
    copyreg.pickle(torch.UntypedStorage, _reduce_storage)
