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
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aicsd.benchmark.table import percent
from aicsd.files import write_text
from aicsd.runs import RunFolder

REPOSITORY = Path(__file__).parent.parent
CONFIGS = REPOSITORY / "configs" / "camvid"
PAGE = REPOSITORY / "docs" / "results" / "camvid.md"
END = "<!-- end of table -->"
TEACHER = "teacher"
ALL_IMAGES = 367
RIVALS = ("kd", "ad", "sp", "ickd", "icsd")


class Student(NamedTuple):
    """Rows of the table: a student, how long it trains, and by which methods.

    ``unlabelled`` adds the other images without their labels, beside which an epoch shows those
    with labels ``repeat`` times; ``pretrained`` starts from ImageNet weights; ``cached`` takes the
    teacher's answers from a cache; ``at_input`` compares logits at the resolution of the images;
    ``long`` tells a longer training of the same from the first one.
    """

    backbone: str
    seeds: int
    epochs: int
    methods: tuple[str, ...]
    images: int = ALL_IMAGES
    unlabelled: bool = False
    repeat: int = 1
    pretrained: bool = False
    cached: bool = False
    at_input: bool = False
    long: bool = False

    def run(self, method: str, seed: int) -> str:
        parts = [self.backbone]
        parts += ["cached"] if self.cached and not self.unlabelled else []
        parts += ["input"] if self.at_input else []
        parts += ["long"] if self.long else []
        if self.images != ALL_IMAGES:
            times = f"x{self.repeat}" if self.repeat > 1 else ""
            rest = f"+{ALL_IMAGES - self.images}" if self.unlabelled else ""
            parts.append(f"{self.images}{times}{rest}")
        return "-".join([*parts, method, str(seed)])

    @property
    def alone(self) -> Student:
        """The rows whose student alone is the one to compare with."""
        return next(
            other
            for other in STUDENTS
            if "none" in other.methods
            and (other.backbone, other.images, other.pretrained, other.long)
            == (self.backbone, self.images, self.pretrained, self.long)
        )


class Trial(NamedTuple):
    """A weight that was tried, beside that of the recipe, on seed 0 of the first student."""

    method: str
    weights: dict[str, float]

    @property
    def run(self) -> str:
        tried = "-".join(f"{term}{weight:g}" for term, weight in self.weights.items())
        return f"{STUDENTS[0].run(self.method, 0)}-{tried}"


STUDENTS = (
    Student("mobilenetv2_050", 3, 16, ("none", *RIVALS, "aicsd")),
    Student("mobilenetv2_050", 3, 16, ("aicsd",), cached=True),
    Student("mobilenetv2_050", 1, 16, ("aicsd",), cached=True, at_input=True),
    Student("mobilenetv2_050", 1, 80, ("none", "aicsd"), images=46),
    Student("mobilenetv2_050", 1, 9, ("kd", "aicsd"), images=46, unlabelled=True, cached=True),
    Student("mobilenetv2_100", 3, 400, ("none",), images=12, pretrained=True),
    Student("mobilenetv2_100", 3, 9, ("kd", "aicsd"), images=12, unlabelled=True, pretrained=True,
            cached=True),
    Student("mobilenetv2_100", 1, 1200, ("none",), images=12, pretrained=True, long=True),
    Student("mobilenetv2_100", 1, 27, ("aicsd",), images=12, unlabelled=True, pretrained=True,
            cached=True, long=True),
    Student("mobilenetv2_100", 1, 80, ("none", "aicsd"), images=46, pretrained=True),
    Student("mobilenetv2_100", 1, 9, ("kd", "aicsd"), images=46, unlabelled=True, pretrained=True,
            cached=True),
    Student("mobilenetv2_100", 1, 5, ("kd", "aicsd"), images=46, unlabelled=True, repeat=7,
            pretrained=True, cached=True),
    Student("mobilenetv2_100", 1, 240, ("none",), images=46, pretrained=True, long=True),
    Student("mobilenetv2_100", 1, 15, ("aicsd",), images=46, unlabelled=True, repeat=7,
            pretrained=True, cached=True, long=True),
    Student("resnet18", 1, 6, ("none", "aicsd")),
)  # fmt: skip
TRIALS = (
    Trial("kd", {"pixel_kd": 1.0}),
    Trial("ad", {"attention": 1.0}),
    Trial("sp", {"pairwise": 0.5}),
    Trial("ickd", {"correlation": 1.0}),
    Trial("icsd", {"icsd": 100.0}),
    Trial("aicsd", {"icsd": 100.0, "pixel_kd": 3.0}),
)


def student_command(
    student: Student, method: str, seed: int, options: argparse.Namespace
) -> list[Any]:
    command = [
        "distill", "--config", CONFIGS / "aicsd.yaml", "--method", method,
        "--student.backbone", student.backbone, "--epochs", student.epochs,
        "--val_every", max(1, student.epochs // 4), "--data.train_images", student.images,
        "--seed", seed,
    ]  # fmt: skip
    if student.unlabelled:
        command += ["--data.unlabelled_rest", "true", "--data.labelled_repeat", student.repeat]
        if method == "aicsd":  # a weight that falls would leave nothing to learn from the rest
            command += ["--terms.pixel_kd.schedule", "constant"]
    if student.pretrained:
        command += ["--student.weights", options.weights]
        command += ["--optimizer.lr", 0.0005, "--optimizer.head_lr_factor", 4]
    if student.cached and method != "none":
        command += ["--teacher_cache", options.runs / "teacher_cache"]
    if student.at_input:
        for term in ("icsd", "pixel_kd"):
            command += [f"--terms.{term}.resolution", "input"]
    return command


def train_all(options: argparse.Namespace) -> None:
    """Train what has no metrics yet, ``options.jobs`` runs side by side."""
    runs, results = options.runs, options.results
    common = ["--data.root", options.root, "--data.workers", 1]
    teacher = ["train", "--config", CONFIGS / "teacher.yaml", "--model.weights", options.weights]
    commands = {
        student.run(method, seed): student_command(student, method, seed, options)
        for student in STUDENTS
        for seed in range(student.seeds)
        for method in student.methods
    }
    for trial in TRIALS:
        flags = [(f"--terms.{term}.weight", weight) for term, weight in trial.weights.items()]
        command = student_command(STUDENTS[0], trial.method, 0, options)
        commands[trial.run] = [*command, *(word for flag in flags for word in flag)]
    missing = {n: c for n, c in commands.items() if not (results / f"{n}.json").is_file()}
    alone = {name: command for name, command in missing.items() if "none" in command}
    distilled = {
        name: [*command, "--teacher", runs / TEACHER]
        for name, command in missing.items()
        if name not in alone
    }

    def train(name: str, command: list[Any]) -> None:
        resume = ["--resume"] if RunFolder(runs / name).config.is_file() else []
        arguments = [*command, *common, "--run", runs / name, *resume]
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
    """Copy the metrics of a finished run, with its epochs and the weights of its terms."""
    if not (run / "metrics.json").is_file():
        return
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    # the same for all: measured before every distillation
    metrics.pop("teacher", None)
    metrics.pop("confusion", None)
    weights = {name: float(term["weight"]) for name, term in config.get("terms", {}).items()}
    kept = {"epochs": config["epochs"], "weights": weights, **metrics}
    write_text(results / f"{run.name}.json", json.dumps(kept, indent=1) + "\n")


def table(results: Path) -> str:
    """The rows of all runs whose metrics are in ``results``."""

    def read(names: list[str]) -> dict[int, dict[str, Any]]:
        files = {seed: results / f"{name}.json" for seed, name in enumerate(names)}
        return {seed: json.loads(f.read_text()) for seed, f in files.items() if f.is_file()}

    lines = [
        "| network | images | method | seeds | epochs | val mIoU % | gain | class acc. % "
        "| parameters |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows: list[tuple[str, str, str, list[str], list[str]]]
    rows = [("mobilenetv2_100 (teacher)", str(ALL_IMAGES), "none", [TEACHER], [])]
    for student in STUDENTS:
        seeds = range(student.seeds)
        network = student.backbone + (" (ImageNet)" if student.pretrained else "")
        images = str(student.images)
        if student.unlabelled:
            images += f" ({student.repeat} times)" if student.repeat > 1 else ""
            images += f" + {ALL_IMAGES - student.images} unlabelled"
        notes = ", cached teacher" if student.cached else ""
        notes += ", at input resolution" if student.at_input else ""
        alone = [student.alone.run("none", seed) for seed in seeds]
        for method in student.methods:
            names = [student.run(method, seed) for seed in seeds]
            title = method if method == "none" else method + notes
            rows.append((network, images, title, names, alone))
    for network, images, method, names, alone in rows:
        found, baseline = read(names), read(alone)
        if not found:
            continue
        runs = list(found.values())
        gains = [
            found[seed]["miou"] - baseline[seed]["miou"]
            for seed in found
            if method != "none" and seed in baseline
        ]
        lines.append(
            f"| {network} | {images} | {method} | {len(runs)} | {runs[0]['epochs']} "
            f"| {percent([run['miou'] for run in runs])} | {percent(gains) if gains else ''} "
            f"| {percent([run['class_accuracy'] for run in runs])} "
            f"| {runs[0]['parameters'] / 1e6:.2f} M |"
        )
    return "\n".join(lines)


def trials(results: Path) -> str:
    """What each method had on seed 0 with the weights of its recipe, and with the others tried."""
    lines = ["| method | weights of the recipe | val mIoU % | other weights tried | val mIoU % |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for trial in TRIALS:
        files = [results / f"{name}.json" for name in (STUDENTS[0].run(trial.method, 0), trial.run)]
        if all(file.is_file() for file in files):
            cells = [trial.method]
            for run in (json.loads(file.read_text()) for file in files):
                weights = [f"{term} {run['weights'][term]:g}" for term in trial.weights]
                cells += [", ".join(weights), percent([run["miou"]])]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def put(text: str, place: str, lines: str) -> str:
    """``lines`` between the marks of ``place`` in a page."""
    begin = f"<!-- {place}: scripts/camvid_results.py -->"
    before, rest = text.split(begin)
    after = rest.split(END, maxsplit=1)[1]
    return f"{before}{begin}\n\n{lines}\n\n{END}{after}"


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
        for name in (TEACHER, *names, *(trial.run for trial in TRIALS)):
            keep(options.runs / name, options.results)
    else:
        if options.root is None or options.weights is None:
            parser.error("give --root and --weights, or --table")
        os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
        train_all(options)
    tables = {"table": table(options.results), "trials": trials(options.results)}
    text = PAGE.read_text(encoding="utf-8")
    for place, lines in tables.items():
        text = put(text, place, lines)
    write_text(PAGE, text)
    print(*tables.values(), sep="\n\n")


if __name__ == "__main__":
    main()
