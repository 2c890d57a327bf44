"""What several commands share."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from aicsd.config import ConfigParser
from aicsd.errors import UserError

if TYPE_CHECKING:
    from aicsd.data.protocol import SegDataset
    from aicsd.models import Segmenter
    from aicsd.visualization.runs import Network


def data_arguments(
    parser: ConfigParser, splits: str, split: str = "val", name: str | None = "auto"
) -> None:
    """The arguments that say which dataset and split; ``name`` None: none unless asked for."""
    from aicsd.data.open import AUTO, DATASETS

    parser.add_argument(
        "--data.name", type=str if name else str | None, default=name,
        help=f"{', '.join(DATASETS)}; {AUTO}: what the root holds",
    )  # fmt: skip
    parser.add_argument("--data.root", type=str | None, help="folder that holds the dataset")
    parser.add_argument("--data.split", type=str, default=split, help=splits)
    parser.add_argument(
        "--data.options", type=dict[str, Any], default={},
        help="further options of the dataset",
    )  # fmt: skip


def compared_runs_arguments(parser: ConfigParser) -> None:
    """The arguments of commands that compare finished runs."""
    parser.add_argument("runs", type=str, nargs="+", help="folders of finished runs")
    parser.add_argument(
        "--teacher", type=str | None,
        help="run folder or model file; without it the one that the runs name",
    )  # fmt: skip
    described = "without it as the first run was trained with"
    parser.add_argument("--data.name", type=str | None, help=f"dataset, {described}")
    parser.add_argument("--data.root", type=str | None, help=f"its folder, {described}")
    parser.add_argument("--data.split", type=str | None, help="without it the validation split")
    parser.add_argument(
        "--data.options", type=dict[str, Any] | None,
        help=f"further options of the dataset, {described}",
    )  # fmt: skip
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or mps")


def open_compared(options: Any) -> tuple[list[Network], SegDataset, list[str]]:
    """Networks, data and remarks of :func:`compared_runs_arguments`."""
    from aicsd.runs import RunFolder
    from aicsd.visualization.runs import open_networks, open_run_data

    if options.images < 1:
        raise UserError(f"images is {options.images}; it must be 1 or more")
    device = pick_device(options.device)
    runs = [RunFolder(run).read() for run in options.runs]
    data = options.data
    dataset = open_run_data(runs[0], data.name, data.root, data.split, data.options)
    networks, notes = open_networks(runs, options.teacher, dataset.classes)
    for network in networks:
        if network.model is not None:
            network.model.to(device)
    return networks, dataset, notes


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
