"""``python -m sparse_xmc``, and the script ``sparse-xmc``."""

import sys
import warnings
from typing import Any

from sparse_xmc import _interrupt


def main() -> int:
    """Runs the command line; an interrupt ends in one line from here on."""
    try:
        _interrupt.watch()
        warnings.formatwarning = _in_one_line
        from sparse_xmc.app.cli import main as run

        return run()
    except BaseException as error:
        if isinstance(error, SystemExit) or not (isinstance(error, KeyboardInterrupt) or _interrupt.happened()):
            raise
        print("sparse_xmc: interrupted", file=sys.stderr)
        return _interrupt.STATUS
    finally:
        _interrupt.unwatch()


def _in_one_line(message: Any, *about: Any, **more: Any) -> str:
    """A warning as the command line shows it, without the place in the code that it comes from."""
    return f"sparse_xmc: {' '.join(str(message).split())}\n"


if __name__ == "__main__":
    sys.exit(main())
