"""``python -m sparse_xmc``."""

import sys

from sparse_xmc.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
