"""aicsd push."""

from __future__ import annotations

from aicsd.cli.parser import Command


def push(run: str, name: str, *, private: bool = False) -> int:
    """Upload a finished run to the Hugging Face Hub, with a model card.

    Args:
        run: folder of a finished run.
        name: user/name of the model on the hub.
        private: make a new model visible to its owner only.
    """
    from aicsd.hub_push import push as put

    print(put(run, name, private))
    print(f"use it: aicsd predict hf:{name} IMAGES --out DIR")
    return 0


COMMAND = Command(push, push, example="aicsd push runs/aicsd user/name")
