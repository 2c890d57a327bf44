"""How large every loss term and its gradient are: where weights come from.

    python scripts/term_scale.py --teacher RUN --students RUN_OR_FILE ... --config CONFIG

prints, for an untrained student and for every given one, the mean over some training batches of
each term (unweighted), of the L2 norm of its gradient on the map that it reads (native logits, or a
feature), and of that norm relative to the cross entropy's on the same map. A weight of 1 / ratio
makes a term pull as hard as the labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import yaml

from aicsd.config import build_config
from aicsd.data import open_dataset
from aicsd.data.loaders import TrainBatches, train_loader
from aicsd.distiller import Teacher
from aicsd.engine import DistillConfig
from aicsd.losses import CrossEntropyLoss, ICSDLoss, PixelKDLoss
from aicsd.models import Segmenter, build_model, load_model, resize
from aicsd.types import Batch


def term_recipes() -> dict[str, TermRecipe]:
    """Every term where it is by default, and ICSD also at the input's resolution."""
    recipes = {}
    for name in TERMS:
        (term,) = [t for key, t in load_recipe("none", {name: {}}).terms.items() if key == name]
        label = name if name == "cross_entropy" else f"{name} {term.resolution}"
        recipes[label] = (name, term)
    recipes["icsd input"] = ("icsd", replace(recipes["icsd native"][1], resolution="input"))
    return recipes
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--students", nargs="*", default=[])
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--batches", type=int, default=8)
    options = parser.parse_args()
    settings = yaml.safe_load(Path(options.config).read_text())
    settings["data"]["root"] = options.root
    config = build_config(DistillConfig, {**settings, "run": "unused"})
    dataset = open_dataset(config.data.name, options.root, config.data.train_split)
    plan = TrainBatches(len(dataset), config.data.batch_size, 0, 0, options.batches)
    batches = list(train_loader(dataset, config.data, plan))
    teacher = Teacher(load_model(options.teacher), dataset.classes)
    torch.manual_seed(0)
    students = {"untrained": build_model(config.student, dataset.classes)}
    students |= {name: load_model(name) for name in options.students}
    print("| student | term | value | gradient norm | relative to cross entropy |")
    print("| --- | --- | --- | --- | --- |")
    for name, student in students.items():
        scales = term_scales(student, teacher, batches)
        unit = scales["cross_entropy"][1]
        for term, (value, gradient) in scales.items():
            print(
                f"| {Path(name).name} | {term} | {value:.5f} | {gradient:.6f} "
                f"| {gradient / unit:.5f} |"
            )


if __name__ == "__main__":
    main()
