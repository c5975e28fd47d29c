"""``python -m strop`` is ``strop``."""

import sys

from strop.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
