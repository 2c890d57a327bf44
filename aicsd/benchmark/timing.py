"""Measuring time so that two figures of one run can be compared."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done what it was told; a CPU has done it already."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def take_turns(
    candidates: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Seconds of every call of each candidate, ``repeats`` of them after one to warm up.

    The candidates take turns, so that a slow moment of the machine does not fall on one of them.
    """
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def machine() -> dict[str, str]:
    """What a time depends on besides the code."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        lines = information.read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def machine_line(device: torch.device) -> str:
    """:func:`machine` in one line, with the name of an accelerator."""
    told = machine()
    name = f"{torch.cuda.get_device_name(device)}, " if device.type == "cuda" else ""
    kind = f"{device.type}, " if device.type not in ("cpu", "cuda") else ""
    return (
        f"{name}{kind}{told['cpu']}, {told['cores']} cores, {told['threads']} threads, "
        f"torch {told['torch']}"
    )
