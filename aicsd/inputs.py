"""Inputs of commands: a network, a dataset, a device."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aicsd.config import build_config
from aicsd.data import data_settings, open_dataset
from aicsd.data.open import AUTO, find_name
from aicsd.data.settings import HELP_WORDS
from aicsd.errors import UserError
from aicsd.files import at_home
from aicsd.runs import RunFolder


@dataclass(frozen=True)
class DataSplit:
    """One split of a dataset; default: the dataset of the run."""

    name: str | None = None
    """{datasets}; auto: recognise the dataset from the root."""
    root: str | None = None
    """folder of the dataset."""
    split: str | None = None
    """name of the split."""
    options: dict[str, Any] = field(default_factory=dict)
    """further options of the dataset, such as {size: 96} for {generated}; default: of a root with
    the layout of the run's dataset, those of the run."""

    @staticmethod
    def help_words() -> dict[str, str]:
        """Text for ``{word}`` in the help."""
        return HELP_WORDS


if TYPE_CHECKING:
    from aicsd.data import SegDataset
    from aicsd.models import Segmenter

    Model = str | Path | Segmenter
    Data = str | Path | Mapping[str, Any] | SegDataset | DataSplit | None
    File = str | Path
    Files = str | Path | Sequence[str | Path]
else:  # what a command line can give
    Model, Data, File, Files = str, DataSplit | None, str, list[str]


def open_model(model: Model, device: str) -> Segmenter:
    """A trained network on a device, in evaluation mode.

    Raises:
        UserError: no such model, or a device that cannot be used here.
    """
    from aicsd.models import Segmenter, load_model

    network = model if isinstance(model, Segmenter) else load_model(model)
    return network.eval().to(pick_device(device))


def pick_device(name: str) -> str:
    """auto -> the best device of this machine.

    Raises:
        UserError: a device that cannot be used here.
    """
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


def open_split(
    data: Data, model: Model, split: str | None = None, need: str = "to read"
) -> SegDataset:
    """The dataset that is given, or else that of the run which ``model`` belongs to.

    Args:
        data: a dataset; or its name, its folder or the keys of :class:`DataSplit`.
        model: a run folder, or a file in one.
        split: name of a split, in place of the one in ``data`` or of the validation split.
        need: purpose of the images, for the message.

    Raises:
        UserError: neither names a dataset, or it cannot be opened.
    """
    if isinstance(data, Mapping):
        data = build_config(DataSplit, data)
    elif isinstance(data, str | Path):
        data = DataSplit(**data_settings(data)[0])
    elif data is not None and not isinstance(data, DataSplit):
        return data
    wanted = data or DataSplit()
    split = split or wanted.split
    if wanted.name is not None or wanted.root is not None:
        name = find_name(wanted.name or AUTO, wanted.root)
        options = wanted.options
        if wanted.root is not None and not options:
            options = _options_of_run(name, model)
        return open_dataset(name, wanted.root, split or "val", options)
    trained_on = _data_of_run(model)
    if trained_on is None:
        raise UserError(
            f"no images {need}: {model} is not a run folder, so give --data.name and --data.root"
        )
    options = wanted.options or trained_on["options"]
    split = split or trained_on["val_split"]
    return open_dataset(trained_on["name"], trained_on["root"], split, options)


def _options_of_run(name: str, model: Model) -> dict[str, Any]:
    """Options of the run on mask values, for data of the same layout; none without a run."""
    trained_on = _data_of_run(model)
    if trained_on is None or trained_on["name"] != name:
        return {}
    options: dict[str, Any] = trained_on["options"]
    return options


def describe_data(data: Data, run: str | Path) -> str | None:
    """Title of what :func:`open_split` opens, as ``camvid, split test``; None without own data."""
    from aicsd.visualization.runs import data_title

    if isinstance(data, Mapping):
        data = build_config(DataSplit, data)
    elif isinstance(data, str | Path):
        data = DataSplit(**data_settings(data)[0])
    if data is None or data == DataSplit():
        return None
    if not isinstance(data, DataSplit):
        return "the data given"
    if data.name is not None or data.root is not None:
        return data_title(data.name, data.root, data.split or "val")
    trained_on = _data_of_run(run) or {}
    split = data.split or trained_on.get("val_split", "val")
    return data_title(trained_on.get("name"), trained_on.get("root"), split)


def _data_of_run(model: Model) -> dict[str, Any] | None:
    """The key ``data`` of the config of a run; ``model`` is its folder or a file in it."""
    if not isinstance(model, str | Path):
        return None
    path = Path(at_home(model))
    run = RunFolder(path if path.is_dir() else path.parent)
    data: dict[str, Any] | None = run.read_config()["data"] if run.config.is_file() else None
    return data


def parse_size(text: str) -> tuple[int, int]:
    """``480x360`` -> (480, 360): width and height.

    Raises:
        UserError: another form, or a side below 32.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if min(size) < 32:
        raise UserError(f"size is {text!r}; it is WIDTHxHEIGHT, each 32 or more, such as 480x360")
    return size
