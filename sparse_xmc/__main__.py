"""``python -m sparse_xmc``."""

import sys

from sparse_xmc.cli import main

if __name__ == "__main__":
    sys.exit(main())
