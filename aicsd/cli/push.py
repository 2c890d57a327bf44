"""aicsd push."""

from __future__ import annotations

from typing import Any

from aicsd.config import ConfigParser

HELP = "put a finished run on the Hugging Face hub, with a model card"


def build_parser() -> ConfigParser:
    parser = ConfigParser(description=HELP)
    parser.add_argument("run", type=str, help="folder of a finished run")
    parser.add_argument("name", type=str, help="user/name of the model on the hub")
    parser.add_argument(
        "--private", type=bool, default=False, help="of a new model: seen by its owner alone"
    )
    return parser


def run(options: Any) -> int:
    from aicsd.hub import push

    print(push(options.run, options.name, options.private))
    print(f"aicsd predict hf:{options.name} IMAGES --out DIR uses it")
    return 0
