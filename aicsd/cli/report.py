"""aicsd report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aicsd.cli.common import compared_runs_arguments, open_compared
from aicsd.config import ConfigParser

HELP = "one self-contained page that compares runs"


def build_parser() -> ConfigParser:
    parser = ConfigParser(description=HELP)
    compared_runs_arguments(parser)
    parser.add_argument("-o", "--out", type=str, required=True, help="HTML file to write")
    parser.add_argument(
        "--images", type=int, default=6, help="how many, spread evenly over the split"
    )
    parser.add_argument(
        "--evaluate", type=bool, default=False,
        help="measure every network anew, on the data given, instead of reading metrics.json",
    )  # fmt: skip
    return parser


def run(options: Any) -> int:
    from aicsd.visualization.report import measure, write_report

    networks, dataset, notes = open_compared(options)
    if options.evaluate:
        networks = [measure(network, dataset) for network in networks]
    out = Path(options.out)
    write_report(out, networks, dataset, images=options.images, notes=notes)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0
