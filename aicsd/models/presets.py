"""Networks with a name. A new one is one entry of ``PRESETS``."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "small": {
        "family": "lraspp",
        "backbone": "mobilenetv2_050",
        "weights": "imagenet",
        "options": {"channels": 128},
    },
}
"""Name -> keys of ``ModelConfig``."""
