"""``python -m aicsd``."""

from aicsd.cli import main

if __name__ == "__main__":
    main()
