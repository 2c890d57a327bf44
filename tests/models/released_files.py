"""Files of the released training for the tests of their import."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from released_deeplab import DeepLab
from torch import Tensor

State = dict[str, Tensor]


def checkpoint(state: State, prefix: str = "module.", **changes: Any) -> dict[str, Any]:
    """The dict that the released training saves."""
    momentum = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.007}]}
    return {
        "epoch": 49,
        "state_dict": {prefix + key: value for key, value in state.items()},
        "optimizer": momentum,
        "best_pred": np.float64(0.7785),
        **changes,
    }


def hollow(backbone: str = "resnet18", classes: int = 21) -> State:
    """Every key and shape, but a file of a few kilobytes."""
    with torch.device("meta"):
        state = DeepLab(backbone, classes).state_dict()
    return {
        key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in state.items()
    }
