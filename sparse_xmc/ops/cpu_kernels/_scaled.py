"""8-bit weights in the CPU kernels: a pair ``(float8 [L, K] as uint8, scale [L])`` takes the place of the weight array."""

from typing import Any

from torch import Tensor

from sparse_xmc.kernels.compiled import kernel
from sparse_xmc.ops.cpu_kernels._numeric import as_numpy, decode


def weight_argument(weight: Tensor, scale: Tensor | None) -> Any:
    """What kernels that call ``logits_tile`` take as their weight. The caller keeps contiguous tensors alive."""
    return as_numpy(weight) if scale is None else (as_numpy(weight), as_numpy(scale.contiguous()))


@kernel
def load_scaled_weights(weight, l0, labels, out):
    """quantized[l0 + i, k] * scale[l0 + i] -> out[i * K + k]."""
    quantized, scale = weight
    K = quantized.shape[1]
    for i in range(labels):
        factor = scale[l0 + i]
        for k in range(K):
            out[i * K + k] = decode(quantized[l0 + i, k]) * factor
