"""The dense module of Sentence Transformers with a fixed fan-in layer inside: what ``sparsify_`` makes of one.

Its name stands in the ``modules.json`` of saved models, by which ``SentenceTransformer(folder, trust_remote_code=True)``
finds it; without that it refuses modules of other packages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparse_xmc.models.linear import FixedFanInLinear

try:
    from sentence_transformers.sentence_transformer.modules import Dense
except ImportError:  # before version 5.4
    from sentence_transformers.models import Dense  # type: ignore[no-redef]


class SparseDense(Dense):
    """``sentence_transformers.models.Dense`` whose ``linear`` has ``fan_in`` connections per output.

    Args:
        in_features, out_features, fan_in, bias, group_size: as in ``FixedFanInLinear``.
        options: as in ``Dense``: activation_function, module_input_name, ...
    """

    config_keys: list[str] = [*Dense.config_keys, "fan_in", "group_size"]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        fan_in: int,
        bias: bool = True,
        *,
        group_size: int = 1,
        activation_function: Any = None,
        module_input_name: str = "sentence_embedding",
        module_output_name: str | None = None,
        use_residual: bool = False,
    ) -> None:
        with torch.device("meta"):  # its dense layer is replaced below
            super().__init__(
                in_features,
                out_features,
                bias,
                activation_function,
                module_input_name=module_input_name,
                module_output_name=module_output_name,
                use_residual=use_residual,
            )
        self.fan_in, self.group_size = fan_in, group_size
        layer = FixedFanInLinear(in_features, out_features, fan_in, bias, group_size=group_size)
        self.linear = layer  # type: ignore[assignment]
        if hasattr(self, "residual"):
            self.residual = nn.Linear(in_features, out_features, bias=False)

    @classmethod
    def of(cls, dense: Any, layer: FixedFanInLinear) -> SparseDense:
        """``dense`` with ``layer`` in the place of its linear layer."""
        made = cls(
            *(layer.in_features, layer.out_features, layer.fan_in, layer.bias is not None),
            group_size=layer.group_size,
            activation_function=dense.activation_function,
            module_input_name=dense.module_input_name,
            module_output_name=dense.module_output_name,
            use_residual=getattr(dense, "use_residual", False),
        )
        made.linear = layer  # type: ignore[assignment]
        if hasattr(dense, "residual"):
            made.residual = dense.residual
        return made.train(dense.training)
