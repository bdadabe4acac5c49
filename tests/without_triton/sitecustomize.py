"""Hides Triton from Python, as on a machine where it is not installed: for PYTHONPATH."""

import sys
from importlib.machinery import PathFinder


class _WithoutTriton(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return None if fullname.partition(".")[0] == "triton" else super().find_spec(fullname, path, target)


sys.meta_path[:] = [_WithoutTriton if finder is PathFinder else finder for finder in sys.meta_path]
