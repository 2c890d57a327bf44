"""The command of the released AICSD code: see aicsd/released.py and docs/reproduce.md."""

import sys

from aicsd.released import main

if __name__ == "__main__":
    main("train.py", sys.argv[1:])
