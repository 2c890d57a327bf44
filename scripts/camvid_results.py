"""The CamVid result: one teacher, students alone and distilled, several seeds, one table.

    python scripts/camvid_results.py --root CAMVID --weights MOBILENETV2_SAFETENSORS

The metrics of every finished run are kept in docs/results/camvid/, one file a run; a run that has
its file is not repeated, unless the file is deleted. Interrupted, it goes on where it was when
called again. ``--table`` trains nothing: it keeps the metrics of the runs that have finished, and
writes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aicsd.benchmark.table import percent
from aicsd.files import write_text

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "results" / "camvid.md"
BEGIN, END = "<!-- table: scripts/camvid_results.py -->", "<!-- end of table -->"
TEACHER = "teacher"
ALL_IMAGES = 367
RIVALS = ("kd", "ad", "sp", "ickd", "icsd")


class Student(NamedTuple):
    """Rows of the table: a student, how long it trains, and by which methods."""

    backbone: str
    seeds: int
    epochs: int
    methods: tuple[str, ...]
    images: int = ALL_IMAGES

    def run(self, method: str, seed: int) -> str:
        part = "" if self.images == ALL_IMAGES else f"-{self.images}"
        return f"{self.backbone}{part}-{method}-{seed}"


STUDENTS = (
    Student("mobilenetv2_050", 3, 16, ("none", *RIVALS, "aicsd")),
    Student("mobilenetv2_050", 1, 80, ("none", "aicsd"), images=46),
    Student("resnet18", 1, 6, ("none", "aicsd")),
)


def train_all(options: argparse.Namespace) -> None:
    """Train what has no metrics yet, ``options.jobs`` runs side by side."""
    config, runs, results = REPOSITORY / "configs" / "camvid", options.runs, options.results
    common = ["--data.root", options.root, "--data.workers", 1]
    teacher = ["train", "--config", config / "teacher.yaml", "--model.weights", options.weights]
    alone, distilled = {}, {}
    for student in STUDENTS:
        for seed in range(student.seeds):
            for method in student.methods:
                name = student.run(method, seed)
                if (results / f"{name}.json").is_file():
                    continue
                command = [
                    "distill", "--config", config / "aicsd.yaml", "--method", method,
                    "--student.backbone", student.backbone, "--epochs", student.epochs,
                    "--data.train_images", student.images, "--seed", seed,
                ]  # fmt: skip
                if method == "none":
                    alone[name] = command
                else:
                    distilled[name] = [*command, "--teacher", runs / TEACHER]

    def train(name: str, command: list[Any]) -> None:
        arguments = [*command, *common, "--run", runs / name, "--resume"]
        line = [sys.executable, "-m", "aicsd", *map(str, arguments)]
        print(" ".join(line), file=sys.stderr, flush=True)
        subprocess.run(line, check=True)
        keep(runs / name, results)

    with ThreadPoolExecutor(options.jobs) as pool:
        jobs: list[Future[None]] = []
        first = None
        if distilled or not (results / f"{TEACHER}.json").is_file():
            first = pool.submit(train, TEACHER, teacher)
        jobs += [pool.submit(train, *job) for job in alone.items()]
        if first is not None:
            first.result()
        jobs += [pool.submit(train, *job) for job in distilled.items()]
        for job in jobs:
            job.result()


def keep(run: Path, results: Path) -> None:
    """Copy the metrics of a finished run, with the epochs that it had."""
    if not (run / "metrics.json").is_file():
        return
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    # the same for all: measured before every distillation
    metrics.pop("teacher", None)
    kept = {"epochs": config["epochs"], **metrics}
    write_text(results / f"{run.name}.json", json.dumps(kept, indent=1) + "\n")


def table(results: Path) -> str:
    """The rows of all runs whose metrics are in ``results``."""
    lines = [
        "| network | images | method | seeds | epochs | val mIoU % | class acc. % | parameters "
        "| minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = [("mobilenetv2_100 (teacher)", ALL_IMAGES, "none", [TEACHER])]
    rows += [
        (student.backbone, student.images, method,
         [student.run(method, seed) for seed in range(student.seeds)])
        for student in STUDENTS
        for method in student.methods
    ]  # fmt: skip
    for network, images, method, names in rows:
        files = [results / f"{name}.json" for name in names]
        found = [json.loads(file.read_text()) for file in files if file.is_file()]
        if not found:
            continue
        miou = percent([result["miou"] for result in found])
        accuracy = percent([result["class_accuracy"] for result in found])
        minutes = statistics.mean(result["seconds"] for result in found) / 60
        lines.append(
            f"| {network} | {images} | {method} | {len(found)} | {found[0]['epochs']} | {miou} "
            f"| {accuracy} | {found[0]['parameters'] / 1e6:.2f} M | {minutes:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", help="CamVid in the SegNet layout")
    parser.add_argument("--weights", help="ImageNet weights of mobilenetv2_100, safetensors")
    parser.add_argument("--runs", type=Path, default=Path("runs/camvid"))
    parser.add_argument(
        "--results", type=Path, default=PAGE.parent / "camvid", help="kept metrics of the runs"
    )
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a core each")
    parser.add_argument("--table", action="store_true", help="train nothing, write the table")
    options = parser.parse_args()
    if options.table:
        names = [s.run(m, seed) for s in STUDENTS for m in s.methods for seed in range(s.seeds)]
        for name in (TEACHER, *names):
            keep(options.runs / name, options.results)
    else:
        if options.root is None or options.weights is None:
            parser.error("give --root and --weights, or --table")
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
        train_all(options)
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    write_text(PAGE, f"{before}{BEGIN}\n\n{table(options.results)}\n\n{END}{after}")
    print(table(options.results))


if __name__ == "__main__":
    main()
