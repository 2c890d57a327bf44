"""The main job on embedded data: teacher, student alone, student distilled; a table, a picture.

    python scripts/demo.py --out demo_out

Interrupted, it goes on where it was when called again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import aicsd
from aicsd.config import find_config
from aicsd.data import open_dataset
from aicsd.errors import UserError
from aicsd.files import read_yaml_mapping
from aicsd.runs import RunFolder
from aicsd.visualization import save_panels

ALONE_EPOCHS = 144
"""Passes over 40 scenes in as many steps as the distilled student has."""
TITLES = {"teacher": "teacher", "alone": "student alone", "aicsd": "student AICSD"}


def settings(name: str, options: argparse.Namespace) -> dict[str, Any]:
    config = find_config(f"digits/{'teacher' if name == 'teacher' else 'aicsd'}")
    values = read_yaml_mapping(config)
    run = RunFolder(options.out / name)
    values |= {"run": run.path, "resume": run.config.is_file()}
    if name == "alone":
        values |= {"method": "none", "epochs": ALONE_EPOCHS, "val_every": 0}
        values["data"] |= {"unlabelled_rest": False, "labelled_repeat": 1}
    if name == "aicsd":  # scenes without labels have no other target: the teacher stays to the end
        values["terms"] = {"pixel_kd": {"schedule": "constant"}}
    if options.epochs:
        values["epochs"] = options.epochs
    if options.scenes:
        values["data"]["options"]["scenes"] = options.scenes
        if name != "teacher":
            values["data"]["train_images"] = options.scenes // 2
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder for the results")
    parser.add_argument("--epochs", type=int, help="instead of the configured, to try it")
    parser.add_argument("--scenes", type=int, help="images per split, to try it")
    options = parser.parse_args()
    out: Path = options.out
    console = Console()
    runs: dict[str, aicsd.Run] = {}
    for number, name in enumerate(TITLES, start=1):
        console.print(f"[{number}/{len(TITLES)}] training: {TITLES[name]}", markup=False)
        values = settings(name, options)
        if name == "teacher":
            runs[name] = aicsd.train(**values)
        else:
            runs[name] = aicsd.distill(teacher=out / "teacher", **values)
    table = Table("network", "mIoU %", "class accuracy %", "parameters", "seconds")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, run in runs.items():
        table.add_row(
            TITLES[name],
            f"{100 * run.metrics['miou']:.1f}",
            f"{100 * run.metrics['class_accuracy']:.1f}",
            f"{run.metrics['parameters'] / 1e6:.2f} M",
            f"{run.metrics['seconds']:.0f}",
        )
    console.print(table)
    picture = out / "demo.png"
    save_panels(
        {TITLES[name]: run.student for name, run in runs.items()},
        open_dataset("digits", None, "val", values["data"]["options"]),
        [0, 1, 2, 3],
        picture,
    )
    console.print(f"picture: {picture}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"demo: error: {error}")
