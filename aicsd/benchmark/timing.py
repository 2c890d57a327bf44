"""The machine that a time was taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine() -> dict[str, str]:
    """Hardware and versions that a time depends on."""
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
