"""The CamVid result: one teacher, students alone and distilled, several seeds, one table.

    python scripts/camvid_results.py --root CAMVID --weights MOBILENETV2_SAFETENSORS

Interrupted, it goes on where it was when called again. ``--table`` only writes the table of the
runs that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import yaml

from aicsd.files import write_text

REPOSITORY = Path(__file__).parent.parent
RESULT = REPOSITORY / "docs" / "results" / "camvid.md"
BEGIN, END = "<!-- table: scripts/camvid_results.py -->", "<!-- end of table -->"


class Student(NamedTuple):
    """A student of the table: how many seeds, epochs and training images it gets."""

    backbone: str
    seeds: int
    epochs: int
    images: int = 367


STUDENTS = (
    Student("mobilenetv2_050", 3, 16),
    Student("mobilenetv2_050", 3, 40, images=92),
    Student("resnet18", 1, 6),
)
METHODS = ("none", "aicsd")


def student_run(runs: Path, student: Student, method: str, seed: int) -> Path:
    part = "" if student.images == 367 else f"-{student.images}"
    return runs / f"{student.backbone}{part}-{method}-{seed}"


def aicsd_command(*arguments: object) -> None:
    command = [sys.executable, "-m", "aicsd", *map(str, arguments), "--resume"]
    print(" ".join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def train_all(options: argparse.Namespace) -> None:
    config, runs = REPOSITORY / "configs" / "camvid", options.runs
    common = ["--data.root", options.root, "--data.workers", 1]
    teacher = ("train", "--config", config / "teacher.yaml", "--model.weights", options.weights,
               *common, "--run", runs / "teacher")  # fmt: skip
    alone, distilled = [], []
    for student in STUDENTS:
        for seed in range(student.seeds):
            for method in METHODS:
                command = [
                    "distill", "--config", config / "aicsd.yaml", *common, "--method", method,
                    "--student.backbone", student.backbone, "--epochs", student.epochs,
                    "--data.train_images", student.images, "--seed", seed,
                    "--run", student_run(runs, student, method, seed),
                ]  # fmt: skip
                if method == "none":
                    alone.append(command)
                else:
                    distilled.append([*command, "--teacher", runs / "teacher"])
    with ThreadPoolExecutor(options.jobs) as pool:
        first = pool.submit(aicsd_command, *teacher)
        others = [pool.submit(aicsd_command, *command) for command in alone]
        first.result()
        others += [pool.submit(aicsd_command, *command) for command in distilled]
        for job in others:
            job.result()


def percent(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.2f}"
    return mean + (f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else "")


def table(runs: Path) -> str:
    lines = [
        "| network | images | method | seeds | epochs | val mIoU % | class acc. % | parameters "
        "| minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = [("mobilenetv2_100 (teacher)", 367, "none", [runs / "teacher"])]
    rows += [
        (student.backbone, student.images, method,
         [student_run(runs, student, method, seed) for seed in range(student.seeds)])
        for student in STUDENTS
        for method in METHODS
    ]  # fmt: skip
    for network, images, method, folders in rows:
        finished = [folder for folder in folders if (folder / "metrics.json").is_file()]
        if not finished:
            continue
        found = [json.loads((folder / "metrics.json").read_text()) for folder in finished]
        epochs = yaml.safe_load((finished[0] / "config.yaml").read_text())["epochs"]
        miou = percent([result["miou"] for result in found])
        accuracy = percent([result["class_accuracy"] for result in found])
        minutes = statistics.mean(result["seconds"] for result in found) / 60
        lines.append(
            f"| {network} | {images} | {method} | {len(found)} | {epochs} | {miou} | {accuracy} "
            f"| {found[0]['parameters'] / 1e6:.2f} M | {minutes:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="CamVid in the SegNet layout")
    parser.add_argument("--weights", help="ImageNet weights of mobilenetv2_100, safetensors")
    parser.add_argument("--runs", type=Path, default=Path("runs/camvid"))
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--table", action="store_true", help="train nothing, write the table")
    options = parser.parse_args()
    if not options.table:
        if options.root is None or options.weights is None:
            parser.error("give --root and --weights, or --table")
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
        train_all(options)
    text = RESULT.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(RESULT, f"{before}{BEGIN}\n\n{table(options.runs)}\n\n{END}{after}")
    print(table(options.runs))


if __name__ == "__main__":
    main()
