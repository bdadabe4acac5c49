"""Fixed fan-in sparse output layers for extreme multi-label classification.

``sparse_xmc.ops`` holds the kernels behind plain functions, ``sparse_xmc.models`` thin modules over them,
``sparse_xmc.training``, ``sparse_xmc.data`` and ``sparse_xmc.distributed`` what is needed to train and scale them.
"""

from sparse_xmc import models, ops
from sparse_xmc._version import __version__

__all__ = ["__version__", "models", "ops"]
