"""``python -m d2ext``: the command line without the ``d2ext`` script on the path."""

import sys

from d2ext.cli import main

__all__ = []

if __name__ == "__main__":
    sys.exit(main())
