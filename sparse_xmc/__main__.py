"""``python -m sparse_xmc``, and the script ``sparse-xmc``."""

import sys


def main() -> int:
    """Runs the command line; an interrupt ends in one line from the first import on."""
    try:
        from sparse_xmc.app.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("sparse_xmc: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
