"""Benchmarks of sparse_xmc against what people would use otherwise: ``python -m bench --help``.

``point`` names what is compared and where, ``providers`` build it, ``check`` proves it right and of equal work,
``measure`` and ``memory`` take the figures, ``rows`` keeps them; ``plotting`` and ``report`` only read rows.
"""
