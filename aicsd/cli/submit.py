"""aicsd submit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from aicsd.cli.common import data_arguments, inference_of, pick_device
from aicsd.config import ConfigParser

HELP = "predictions as the archive that the VOC or Cityscapes server takes"


def build_parser() -> ConfigParser:
    from aicsd.evaluation import InferenceConfig

    parser = ConfigParser(description=HELP)
    parser.add_argument("model", type=str, help="run folder or model file")
    data_arguments(parser, "split to predict", "test")
    parser.add_argument(
        "-o", "--out", type=str, required=True, help="archive: .tgz for voc, .zip for cityscapes"
    )
    parser.add_class_arguments(InferenceConfig)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    return parser


def run(options: Any) -> int:
    from aicsd.data import open_images
    from aicsd.evaluation.submission import check_submission, write_submission
    from aicsd.models import load_model
    from aicsd.models.inference import predict_ids
    from aicsd.terminal import progress_bar

    data, out = options.data, Path(options.out)
    model = load_model(options.model).to(pick_device(options.device))
    server = check_submission(data.name, model.classes, out)
    images = open_images(data.name, data.root, data.split, data.options)
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(images), note="")
        write_submission(
            server, images, data.split, partial(predict_ids, model, config=inference_of(options)),
            out, advance=lambda: bar.advance(task),
        )  # fmt: skip
    print(f"{out}: {len(images)} predictions, checked")
    return 0
