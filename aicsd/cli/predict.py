"""aicsd predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aicsd.cli.common import inference_of, pick_device
from aicsd.config import ConfigParser

HELP = "class-id PNGs and coloured overlays of images"


def build_parser() -> ConfigParser:
    from aicsd.evaluation import InferenceConfig

    parser = ConfigParser(description=HELP)
    parser.add_argument("model", type=str, help="run folder, model file or checkpoint")
    parser.add_argument("images", type=str, nargs="+", help="image files or folders of images")
    parser.add_argument("--out", type=str, required=True, help="folder for the results")
    parser.add_class_arguments(InferenceConfig)
    parser.add_argument("--opacity", type=float, default=0.5, help="of the overlay, 0 to 1")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")
    return parser


def run(options: Any) -> int:
    from aicsd.engine.logging import progress_bar
    from aicsd.evaluation.predict import find_images, predict_files
    from aicsd.models import load_model

    images = find_images(options.images)
    model = load_model(options.model).to(pick_device(options.device))
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(images), note="")
        for _ in predict_files(
            model, images, Path(options.out), options.opacity, inference_of(options)
        ):
            bar.advance(task)
    print(f"{len(images)} images: class ids and overlays in {options.out}")
    return 0
