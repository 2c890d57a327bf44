"""What several commands share."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from aicsd.config import ConfigParser
from aicsd.errors import UserError

if TYPE_CHECKING:
    from aicsd.models import Segmenter


def data_arguments(
    parser: ConfigParser, splits: str, split: str = "val", name: str | None = "digits"
) -> None:
    """The arguments that say which dataset and split; ``name`` None: none unless asked for."""
    parser.add_argument(
        "--data.name", type=str if name else str | None, default=name,
        help="digits, voc, cityscapes, camvid or folder",
    )  # fmt: skip
    parser.add_argument("--data.root", type=str | None, help="folder that holds the dataset")
    parser.add_argument("--data.split", type=str, default=split, help=splits)
    parser.add_argument(
        "--data.options", type=dict[str, int | float | str | bool], default={},
        help="further options of the dataset",
    )  # fmt: skip


def inference_of(options: Any) -> Any:
    """The inference settings among the options of a command."""
    from aicsd.evaluation import InferenceConfig

    return InferenceConfig(**{field.name: options[field.name] for field in fields(InferenceConfig)})


def pick_device(name: str) -> str:
    """auto -> the best device of this machine."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator.type if accelerator is not None else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    return name


def open_model(path: str, device: str) -> tuple[Segmenter, str]:
    """A trained model on ``device``, and the name of that."""
    from aicsd.models import load_model

    place = pick_device(device)
    return load_model(path).to(place), place
