"""aicsd import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from aicsd.config import ConfigParser
from aicsd.errors import UserError

HELP = "turn a checkpoint of the published AICSD code into a model file"


def build_parser() -> ConfigParser:
    parser = ConfigParser(description=HELP)
    parser.add_argument("checkpoint", type=str, help="NAME.pth.tar, .pth or .pt")
    parser.add_argument("-o", "--out", type=str, required=True, help="safetensors file to write")
    parser.add_argument(
        "--output_stride", type=int, default=16,
        help="that the network was trained at: 8 or 16; the weights do not tell",
    )  # fmt: skip
    parser.add_argument(
        "--classes", type=str | None,
        help="file with a class name a line; without it VOC for 21 and Cityscapes for 19 classes",
    )  # fmt: skip
    return parser


def run(options: Any) -> int:
    from aicsd.data.classes_file import read_classes
    from aicsd.models import import_checkpoint, save_model

    source, out = Path(options.checkpoint), Path(options.out)
    if out.suffix != ".safetensors":
        raise UserError(f"out: {out} must end in .safetensors")
    if out.exists():
        raise UserError(f"out: {out} exists; choose another file or remove it")
    classes = read_classes(Path(options.classes)) if options.classes is not None else None
    model, info = import_checkpoint(source, options.output_stride, classes)
    save_model(model, out, info)
    told = [f"{key} {info[key]:.6g}" for key in ("epoch", "best_pred") if info[key] is not None]
    print(
        f"{out}: {model.name}, {len(model.classes.names)} classes "
        f"({model.classes.names[0]} to {model.classes.names[-1]}), "
        f"{', '.join([f'{model.num_parameters() / 1e6:.2f} M parameters', *told])}"
    )
    if info["left_out"]:
        print(f"{source}: left out, as no logit depends on them: {', '.join(info['left_out'])}",
              file=sys.stderr)  # fmt: skip
    return 0
