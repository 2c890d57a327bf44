"""aicsd visualize."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from aicsd.cli.common import compared_runs_arguments, open_compared
from aicsd.config import ConfigParser

HELP = "pictures of runs: panels, ICS matrices, intra-class distributions, curves"


def build_parser() -> ConfigParser:
    parser = ConfigParser(description=HELP)
    compared_runs_arguments(parser)
    parser.add_argument("--out", type=str, required=True, help="folder for the pictures")
    parser.add_argument(
        "--images", type=int, default=3, help="how many, spread evenly over the split"
    )
    return parser


def run(options: Any) -> int:
    from aicsd.visualization.gallery import save_gallery
    from aicsd.visualization.views import spread

    networks, dataset, notes = open_compared(options)
    for note in notes:
        print(f"aicsd: {note}", file=sys.stderr)
    indices = spread(dataset, options.images)
    for file in save_gallery(networks, dataset, indices, Path(options.out)):
        print(file)
    return 0
