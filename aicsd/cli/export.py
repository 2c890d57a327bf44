"""aicsd export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aicsd.cli.common import data_arguments
from aicsd.config import ConfigParser
from aicsd.errors import UserError
from aicsd.formats import FORMATS

if TYPE_CHECKING:
    from aicsd.export import Parity

HELP = "a trained model as a file for ONNX Runtime, OpenVINO, phones and more, in float or INT8"


def build_parser() -> ConfigParser:
    parser = ConfigParser(description=HELP)
    parser.add_argument("model", type=str, help="run folder, safetensors file or checkpoint")
    parser.add_argument(
        "-o", "--out", type=str, required=True,
        help="file to write, whose ending says the format: "
        + ", ".join(f"{known.suffix} ({known.title})" for known in FORMATS),
    )  # fmt: skip
    parser.add_argument(
        "--format", type=str | None,
        help=f"{', '.join(known.name for known in FORMATS)}; without it the one of the ending",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Literal["logits", "native", "labels"], default="logits",
        help="logits at the size of the image, native ones at stride 4, or labels (arg max)",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=str | None,
        help="WIDTHxHEIGHT: a file for one image of this size at a time; "
        f"{', '.join(known.name for known in FORMATS if known.one_size)} need it",
    )  # fmt: skip
    parser.add_argument(
        "--int8", type=bool, default=False, help="round weights and activations to 8 bits"
    )
    parser.add_argument(
        "--calibration_split", type=str, default="train", help="split that INT8 is calibrated on"
    )
    parser.add_argument(
        "--calibration_images", type=int, default=64,
        help="at most how many of its images, spread evenly over it",
    )  # fmt: skip
    data_arguments(parser, "split that the mIoU before and after INT8 is measured on", name=None)
    return parser


def run(options: Any) -> int:
    from aicsd.cli.benchmark import parse_size
    from aicsd.export import check_target, export_model
    from aicsd.models import load_model

    out = Path(options.out)
    size = None if options.size is None else parse_size(options.size)[::-1]
    target = check_target(out, options.format, options.int8, size)
    calibration, val = _open_data(options) if options.int8 else (None, None)
    model = load_model(options.model)
    parity = export_model(model, out, options.output, calibration, size)
    images = "images (B, H, W, 3)" if size is None else f"image (1, {size[0]}, {size[1]}, 3)"
    print(
        f"{out}: {target.name}, {images} uint8 RGB -> {options.output}, "
        f"{target.bytes(out) / 1e6:.1f} MB; {'before INT8 ' if options.int8 else ''}"
        f"{_parity(parity, options.output, target.title)}"
    )
    if val is not None:
        assert calibration is not None
        before, after = _miou(model, val, "float"), _miou(load_model(out), val, "INT8")
        print(
            f"{out}: INT8, calibrated on {len(calibration)} images of {options.calibration_split}: "
            f"mIoU {100 * before:.2f} -> {100 * after:.2f} ({100 * (after - before):+.2f} points) "
            f"on {options.data.split} ({len(val)} images)"
        )
    return 0


def _parity(parity: Parity, output: str, title: str) -> str:
    if parity.error is None or parity.agreement is None:
        return f"only its structure is checked: {title} does not run on this machine"
    close = "" if output == "labels" else f"logits within {parity.error:.1e} of their range, "
    return f"{close}{parity.agreement:.3%} of the labels as in PyTorch"


def _open_data(options: Any) -> tuple[Any, Any]:
    from aicsd.data import open_dataset
    from aicsd.data.wrappers import Subset

    data, count = options.data, options.calibration_images
    if data.name is None:
        raise UserError(
            "int8 needs images to calibrate on: give --data.name and --data.root of the training "
            "data"
        )
    if count < 1:
        raise UserError(f"calibration_images is {count}; it must be 1 or more")
    train = open_dataset(data.name, data.root, options.calibration_split, data.options)
    val = open_dataset(data.name, data.root, data.split, data.options)
    return Subset(train, min(count, len(train))), val


def _miou(model: Any, dataset: Any, what: str) -> float:
    from aicsd.evaluation import evaluate
    from aicsd.terminal import progress_bar

    with progress_bar() as bar:
        task = bar.add_task(f"evaluating {what}", total=len(dataset), note="")
        metrics = evaluate(
            model, dataset, batch_size=1, advance=lambda images: bar.advance(task, images)
        )
    return metrics.miou
