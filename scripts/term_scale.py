"""Measure every loss term and its gradient, the basis of weights.

    python scripts/term_scale.py --teacher RUN --students RUN_OR_FILE ... --config CONFIG

prints, for an untrained student and for every given one, the mean over some training batches of
each term (unweighted), of the L2 norm of its gradient on the map that it reads (native logits, or a
feature), and of that norm relative to the cross entropy's on the same map. A weight of 1 / ratio
makes a term pull as hard as the labels.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from configs import read_settings

from aicsd.benchmark.weights import term_scales
from aicsd.data import open_dataset
from aicsd.data.batches import TrainBatches
from aicsd.data.loaders import train_loader
from aicsd.methods import TermRecipe, list_methods, load_recipe
from aicsd.models import build_model, load_model
from aicsd.teacher import Teacher


def all_terms() -> dict[str, tuple[str, TermRecipe]]:
    """Every term of the methods, and those on logits also at the input's resolution."""
    terms = {}
    for method in list_methods():
        for name, term in load_recipe(method).terms.items():
            terms[f"{name} {term.resolution}" if term.needs_teacher else name] = (name, term)
            if term.needs_teacher and not term.reads_features:
                terms[f"{name} input"] = (name, replace(term, resolution="input"))
    return terms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--students", nargs="*", default=[])
    parser.add_argument("--config", required=True)
    parser.add_argument("--root", help="folder of the dataset, where the config does not name it")
    parser.add_argument("--batches", type=int, default=8)
    options = parser.parse_args()
    config = read_settings(options.config, options.root)
    data = config.data
    dataset = open_dataset(data.name, data.root, data.train_split, data.options)
    plan = TrainBatches(len(dataset), data.batch_size, 0, 0, options.batches)
    batches = list(train_loader(dataset, data, plan))
    teacher = Teacher(load_model(options.teacher), dataset.classes)
    torch.manual_seed(0)
    students = {"untrained": build_model(config.student, dataset.classes)}
    students |= {name: load_model(name) for name in options.students}
    print("| student | term | value | gradient norm | relative to cross entropy |")
    print("| --- | --- | --- | --- | --- |")
    for name, student in students.items():
        scales = term_scales(student, teacher, batches, all_terms())
        for term, (value, gradient, ratio) in scales.items():
            print(f"| {Path(name).name} | {term} | {value:.5f} | {gradient:.6f} | {ratio:.5f} |")


if __name__ == "__main__":
    main()
