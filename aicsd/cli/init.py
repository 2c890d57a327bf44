"""aicsd init."""

from __future__ import annotations

from aicsd.cli.parser import Command


def init(root: str, *, out: str | None = None) -> int:
    """Write a config for your own data, with values chosen from the images and this machine.

    Args:
        root: folder of the dataset.
        out: YAML file to write; default: FOLDER.yaml in the current folder.
    """
    from aicsd.starter import write_config

    start = write_config(root, out)
    print(f"{start.path}: a comment gives the reason of each value. Next:")
    print("\n".join(f"  {command}" for command in start.commands))
    return 0


COMMAND = Command(init, init, example="aicsd init my_data --out my_data.yaml")
