"""python -m xgenvideo: the command xgv, for launchers that start modules."""

import sys

from xgenvideo.cli import main

if __name__ == "__main__":
    sys.exit(main())
