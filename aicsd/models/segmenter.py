"""A network with all that it takes to use it: classes, colours, normalisation. And its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from aicsd.data.base import Classes, UInt8Array, read_image
from aicsd.errors import UserError, suggest
from aicsd.files import atomic_path
from aicsd.models.deeplabv3plus import class_ids
from aicsd.types import SegOutput

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HEADER_KEY = "aicsd"
HEADER_FORMAT = 1
DRY_RUN_SIDE = 64


class MapInfo(NamedTuple):
    """A map that a network offers."""

    channels: int
    stride: int
    """Pixels of the input between two cells."""


class Segmenter(nn.Module):
    """Takes uint8 images; normalises them as its network expects.

    Args:
        net: network on normalised (B, 3, H, W) images that returns a ``SegOutput``, a tensor of
            logits, a dict with ``out`` (torchvision) or an object with ``logits`` (transformers).
        classes: names and colours, in the order of the network's channels.
        mean: of the input, RGB in [0, 1].
        std: of the input, RGB in [0, 1].
        architecture: how to build ``net`` again; without it the model cannot be saved.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        classes: Classes,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        architecture: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.classes = classes
        self.architecture = dict(architecture) if architecture is not None else None
        self.input_mean, self.input_std = tuple(mean), tuple(std)
        self._maps: dict[str, MapInfo] | None = None
        self.notes: list[str] = []
        """What is worth saying about how the network was built."""
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) uint8 RGB -> logits at the network's own resolution, and features."""
        return as_output(self.net((image.to(self.mean.dtype) / 255 - self.mean) / self.std))

    @property
    def maps(self) -> dict[str, MapInfo]:
        """Logits and features by name, as one forward pass in evaluation mode gives them."""
        if self._maps is None:
            was_training, side = self.training, DRY_RUN_SIDE
            self.eval()
            try:
                image = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=self.mean.device)
                with torch.no_grad():
                    output = self(image)
            finally:
                self.train(was_training)
            named = {"logits": output.logits, **output.features}
            self._maps = {
                name: MapInfo(maps.shape[1], round(side / maps.shape[2]))
                for name, maps in named.items()
            }
        return self._maps

    @torch.no_grad()
    def predict(self, image: UInt8Array | str | Path) -> UInt8Array:
        """(H, W, 3) uint8 RGB array, or an image file -> (H, W) uint8 class ids."""
        array = read_image(Path(image)) if isinstance(image, str | Path) else image
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
            raise UserError(
                f"image {array.shape} {array.dtype} must be (H, W, 3) uint8 in RGB order"
            )
        was_training = self.training
        self.eval()
        try:
            # copied, since an array from PIL is read-only, which torch warns of
            batch = torch.from_numpy(np.array(array)).permute(2, 0, 1)[None]
            logits = self(batch.to(self.mean.device)).logits
            labels = class_ids(logits, (array.shape[0], array.shape[1]))
        finally:
            self.train(was_training)
        ids: UInt8Array = labels[0].to(torch.uint8).cpu().numpy()
        return ids

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters that start from ImageNet weights; none if the network names no backbone."""
        backbone = getattr(self.net, "backbone", None)
        return list(backbone.parameters()) if isinstance(backbone, nn.Module) else []

    def num_parameters(self) -> int:
        """Of the whole network."""
        return sum(parameter.numel() for parameter in self.parameters())


def as_output(output: Any) -> SegOutput:
    """Whatever common segmentation networks return -> ``SegOutput``."""
    if isinstance(output, SegOutput):
        return output
    if isinstance(output, Tensor):
        return SegOutput(output, {})
    if isinstance(output, Mapping) and "out" in output:
        return SegOutput(output["out"], {})
    if hasattr(output, "logits"):
        return SegOutput(output.logits, {})
    raise UserError(
        f"the network returned {type(output).__name__}; expected logits (B, C, H, W), a dict with "
        "'out', or an object with 'logits'"
    )


def map_named(output: SegOutput, name: str, owner: str) -> Tensor:
    """``logits``, or the feature ``name``; one that the network of ``owner`` lacks is refused."""
    maps = {"logits": output.logits, **output.features}
    if name not in maps:
        raise UserError(f"{owner} has no feature {name!r}{suggest(name, maps)}")
    return maps[name]


def save_model(model: Segmenter, path: Path, info: Mapping[str, Any] | None = None) -> None:
    """Write weights and a JSON header that names all it takes to load them.

    Args:
        model: built by :func:`aicsd.models.build_model`.
        path: safetensors file; written beside its place and renamed.
        info: further facts for the header (data, method, metrics).
    """
    if model.architecture is None:
        raise UserError("this model was not built by aicsd, so its architecture cannot be saved")
    header = {
        "format": HEADER_FORMAT,
        "architecture": model.architecture,
        "classes": list(model.classes.names),
        "palette": [list(color) for color in model.classes.palette],
        "mean": list(model.input_mean),
        "std": list(model.input_std),
        "info": dict(info or {}),
    }
    state = {
        key: value.detach().cpu().contiguous() for key, value in model.net.state_dict().items()
    }
    with atomic_path(path) as temporary:
        try:
            save_file(state, temporary, metadata={HEADER_KEY: json.dumps(header)})
        except SafetensorError as error:  # a full disk, for one
            raise UserError(f"cannot write {path}: {error}") from error


def is_model_file(path: Path) -> bool:
    """Whether ``path`` is a safetensors file with the header of :func:`save_model`."""
    try:
        with safe_open(path, framework="pt") as file:
            return HEADER_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_model_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and weights of a file of :func:`save_model`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from error
    if HEADER_KEY not in metadata:
        raise UserError(
            f"{path} holds weights but no model header; only files written by aicsd load as models"
        )
    try:
        header = json.loads(metadata[HEADER_KEY])
    except json.JSONDecodeError:
        header = None
    found = header.get("format") if isinstance(header, dict) else None
    if found != HEADER_FORMAT:
        raise UserError(
            f"{path} has header format {found}; this version reads {HEADER_FORMAT}: update aicsd"
        )
    return header, state
