"""Fixed fan-in sparse output layers for extreme multi-label classification.

``sparse_xmc.ops`` holds the kernels behind plain functions, ``sparse_xmc.models`` thin modules over them; ``optim``,
``topology``, ``metrics``, ``data``, ``storage`` and ``distributed`` what is needed to train and scale them, ``app`` the command
line.
"""

from sparse_xmc import models, ops
from sparse_xmc._version import __version__

__all__ = ["__version__", "models", "ops"]
