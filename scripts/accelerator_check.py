"""Ten minutes on an accelerator: are the values right, how fast is it, what do methods gain?

    python scripts/accelerator_check.py --out OUT --stage STAGE

Three parts, each with its own time: every loss and method against the CPU (``values``), the figures
of docs/performance.md (``speed``), and the benchmark of methods on CamVid (``campaign``). OUT holds
what is known after each figure: ``report.json``, ``summary.md`` and ``campaign/``. What the time
did not suffice for is named. Exit code 1 if a value was wrong. See docs/accelerator.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from traceback import extract_tb
from typing import Any

# asked for by deterministic kernels, and read when the device is first used
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402

from aicsd.benchmark.timing import machine, machine_line  # noqa: E402
from aicsd.config import find_config  # noqa: E402
from aicsd.files import write_text  # noqa: E402
from aicsd.run_config import Precision  # noqa: E402
from benchmarks import accelerator_campaign as campaign  # noqa: E402
from benchmarks import accelerator_speed as speed  # noqa: E402
from benchmarks import accelerator_values as values  # noqa: E402
from benchmarks.accelerator_values import Check, WrongValueError  # noqa: E402

BACKBONES, TINY_BACKBONES = ("resnet101", "resnet18"), ("mobilenetv2_035", "test_resnet")


class Report:
    """Everything that is known, on disk after each figure.

    Args:
        out: folder of the files.
        device: that is checked.
    """

    def __init__(self, out: Path, device: torch.device) -> None:
        self.out, self.device = out, device
        self.items: list[dict[str, Any]] = []

    def add(self, part: str, name: str, status: str, **facts: Any) -> None:
        """One line: ``ok``, ``wrong``, ``error`` or ``not run``."""
        self.items.append({"part": part, "name": name, "status": status, **facts})
        told = {"machine": machine(), "device": machine_line(self.device), "items": self.items}
        write_text(self.out / "report.json", json.dumps(told, indent=1) + "\n")
        write_text(self.out / "summary.md", self.summary())
        shown = facts.get("detail") or _shown(facts.get("figures", {}))
        print(f"{part}: {name}: {status} {shown}", flush=True)

    def summary(self) -> str:
        """Counts by part, what was not right, and every figure of speed."""
        counted = ["| part | ok | wrong | error | not run |", "| --- | --- | --- | --- | --- |"]
        for part in dict.fromkeys(item["part"] for item in self.items):
            found = [item["status"] for item in self.items if item["part"] == part]
            numbers = (str(found.count(status)) for status in ("ok", "wrong", "error", "not run"))
            counted.append(f"| {part} | {' | '.join(numbers)} |")
        lines = [f"# {machine_line(self.device)}", "", *counted, ""]
        for item in self.items:
            if item["status"] != "ok":
                lines.append(
                    f"* {item['part']}: {item['name']}: {item['status']}: {item.get('detail', '')}"
                )
        lines += ["", "| figure | |", "| --- | --- |"]
        lines += [
            f"| {item['name']} | {_shown(item['figures'])} |"
            for item in self.items
            if item["status"] == "ok" and item["part"] != "values"
        ]
        return "\n".join(lines) + "\n"

    def run(self, part: str, checks: Iterable[Check], seconds: float) -> None:
        """Run checks until the time is over; the rest is named."""
        deadline = time.monotonic() + seconds
        for name, check in checks:
            if time.monotonic() > deadline:
                self.add(part, name, "not run", detail="the time was over")
                continue
            begin = time.monotonic()
            status, facts = _attempt(check)
            self.add(part, name, status, seconds=round(time.monotonic() - begin, 2), **facts)


def _attempt(check: Callable[[], dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    try:
        return "ok", {"figures": check()}
    except WrongValueError as error:
        return "wrong", {"detail": str(error)}
    except (
        Exception
    ) as error:  # a missing compiler, memory that is too small, a kernel that is not there
        where = extract_tb(error.__traceback__)[-1]
        text = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        return "error", {"detail": f"{text} ({Path(where.filename).name}:{where.lineno})"}


def _shown(figures: dict[str, Any]) -> str:
    numbers = ((k, v) for k, v in figures.items() if isinstance(v, int | float))
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    device, tiny = options.device, options.tiny
    torch.backends.cudnn.allow_tf32 = False  # for values; the parts that measure speed switch it on
    report = Report(options.out, device)
    precisions: tuple[Precision, ...]
    precisions = ("32-true",) if device.type == "cpu" else ("32-true", "bf16-mixed", "16-mixed")
    if options.minutes_values:
        shape = (2, 3, 9, 7) if tiny else (2, 21, 33, 47)
        backbone = "test_resnet" if tiny else "mobilenetv2_035"
        checks = [
            *values.method_checks(device, precisions, backbone),
            *values.loss_checks(device, shape),
        ]
        report.run("values", checks, 60 * options.minutes_values)
    torch.backends.cudnn.allow_tf32 = True
    if options.minutes_speed:
        shapes = speed.TINY_SHAPES if tiny else speed.SHAPES
        root = None if options.stage is None else options.stage / "camvid"
        root = root if root is not None and root.is_dir() else None
        checks = [
            *speed.step_speeds(device, shapes, TINY_BACKBONES if tiny else BACKBONES),
            *speed.loss_speeds(device, shapes),
            *speed.pipeline_speeds(root, *((64, 2) if tiny else (513, speed.LOADED_BATCHES))),
        ]
        report.run("speed", checks, 60 * options.minutes_speed)
    if options.minutes_campaign:
        campaign.run(options, report.add)
    print(f"\n{report.summary()}", flush=True)
    return int(any(item["status"] == "wrong" for item in report.items))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--stage", type=Path, help="what stage_accelerator.py made")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--minutes_values", type=float, default=2.5, help="0 leaves the part out")
    parser.add_argument("--minutes_speed", type=float, default=2.0, help="likewise")
    parser.add_argument("--minutes_campaign", type=float, default=4.5, help="likewise")
    parser.add_argument(
        "--jobs", type=int, default=12, help="trainings of the campaign, side by side"
    )
    parser.add_argument("--epochs", type=int, default=40, help="of a training of the campaign")
    parser.add_argument(
        "--teacher_epochs", type=int, default=0, help="train the teacher of the campaign first"
    )
    parser.add_argument("--campaign", default="camvid/methods", help="config of the benchmark")
    parser.add_argument(
        "--tiny", action="store_true", help="small shapes, to try the script itself"
    )
    options = parser.parse_args(arguments)
    name = options.device
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if accelerator is None else accelerator.type
    options.device = torch.device(name)
    options.out = options.out.absolute()
    options.stage = None if options.stage is None else options.stage.absolute()
    options.campaign = find_config(options.campaign).absolute()
    return options


if __name__ == "__main__":
    sys.exit(main())
