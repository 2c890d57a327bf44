"""Device, processes and precision of a run."""

from __future__ import annotations

import os
import platform

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException

from aicsd.errors import UserError, one_line
from aicsd.messages import say
from aicsd.run_config import FitConfig


def open_fabric(config: FitConfig) -> Fabric:
    """Device, number of processes and precision of a config; not launched yet.

    Raises:
        UserError: this machine does not have them.
    """
    try:
        fabric = Fabric(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=config.precision,
        )
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = one_line(error, 500)
        raise UserError(
            f"accelerator {config.accelerator!r} with devices {config.devices} cannot be used "
            f"here: {reason}"
        ) from error
    if config.precision == "bf16-mixed" and _emulates_bfloat16(fabric.device):
        say(
            "note: this processor has no instructions for bfloat16: precision bf16-mixed "
            "will be many times slower than 32-true"
        )
    return fabric


def _emulates_bfloat16(device: torch.device) -> bool:
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return device.type == "cpu" and on_x86 and not torch.cpu._is_avx512_bf16_supported()


def is_first_process() -> bool:
    """Whether this process writes the run folder; known before the processes have met."""
    names = ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)
