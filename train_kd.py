"""The command of the published AICSD code: see aicsd/published.py and docs/reproduce.md."""

import sys

from aicsd.published import main

if __name__ == "__main__":
    main("train_kd.py", sys.argv[1:])
