"""Switches that keep the libraries from sending usage reports, set before any is imported."""

from __future__ import annotations

import os
import sys

SWITCHES = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, which timm imports
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime
    "WANDB_ERROR_REPORTING": "false",
}
"""Environment variable -> value; one that is set already stays as it is."""
REPORTERS = ("openvino_telemetry",)
"""Modules that only report. OpenVINO and NNCF work without them."""


def switch_off() -> None:
    """Switch off the usage reports of every library that sends any."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    for name in REPORTERS:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # its import fails
