"""Segmentation network with its declarations: classes, input spec and named maps."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.images import UInt8Array, read_image
from aicsd.models.inference import InferenceConfig, image_batch, predict_ids
from aicsd.models.input_spec import IMAGENET, InputSpec
from aicsd.models.maps import MapInfo, as_output, evaluating, resize
from aicsd.models.one_size import run_in_one_size
from aicsd.runs import MODEL_FILE, RunFolder
from aicsd.types import LOGITS, SegOutput

HUB_NAME = r"[\w.-]+/[\w.-]+(@[\w./-]+)?"
"""``user/name``, or ``user/name@revision``."""
MEASURED_SIDE = 128
"""Side in pixels of the image on which maps are measured."""
NAMES_SHOWN = 4
"""Classes that a network names when it is printed."""


class Origin(NamedTuple):
    """Recipe for building a network again: its family, and options of the family."""

    family: str
    options: dict[str, Any]


class Segmenter(nn.Module):
    """Takes uint8 images of any size; prepares them as its network expects.

    Args:
        net: network on normalised (B, 3, H, W) images that returns a ``SegOutput``, a tensor of
            logits, a dict with ``out`` (torchvision) or an object with ``logits`` (transformers).
        classes: names and colours, in the order of the network's channels.
        input: input spec of ``net``.
        maps: channels and stride of ``logits`` and of every feature that ``net`` offers; measured
            where they are not stated.
        align_corners: whether its maps are resized with aligned corners; False as in PyTorch, most
            libraries and most networks.
        backbone: path of the submodule of ``net`` that starts from the weights of a classifier and
            learns at the lower rate; "" if there is none.
        min_batch: images that a training batch must have at least.
        of_masks: whether ``net`` classifies masks: its logits are logarithms of scores that add up
            over masks. They are resized as scores, and come out normalised over the classes.
        origin: recipe for building ``net`` again; without it only its weights can be saved.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        classes: Classes,
        input: InputSpec = IMAGENET,
        *,
        maps: Mapping[str, MapInfo] | None = None,
        align_corners: bool = False,
        backbone: str = "",
        min_batch: int = 1,
        of_masks: bool = False,
        origin: Origin | None = None,
    ) -> None:
        super().__init__()
        self.net, self.classes, self.input, self.origin = net, classes, input, origin
        self.of_masks = of_masks
        self.align_corners, self.backbone, self.min_batch = align_corners, backbone, min_batch
        self._maps = dict(maps or {})
        self.notes: list[str] = []
        """Remarks on how the network was built."""
        self.register_buffer("mean", torch.tensor(input.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(input.std).view(1, 3, 1, 1), persistent=False)

    @property
    def name(self) -> str:
        """The backbone, the architecture or the family, for tables; ``custom`` for a module."""
        if self.origin is None:
            return "custom"
        options = self.origin.options
        return str(options.get("backbone") or options.get("name") or self.origin.family)

    def __repr__(self) -> str:
        """One line; ``print(model.net)`` has every layer."""
        size = self.input.size
        takes = "images of any size" if size is None else f"images resized to {size[1]}x{size[0]}"
        names = ", ".join(self.classes.names[:NAMES_SHOWN])
        names += ", ..." if len(self.classes.names) > NAMES_SHOWN else ""
        return (
            f"{type(self).__name__}({self.name}, {len(self.classes.names)} classes: {names}; "
            f"{self.num_parameters() / 1e6:.2f} M parameters; {takes}, uint8 RGB)"
        )

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the network's weights."""
        weight = next(self.net.parameters(), self.mean)
        return weight.dtype if weight.is_floating_point() else self.mean.dtype

    @property
    def maps(self) -> dict[str, MapInfo]:
        """``logits`` and every feature that the network offers."""
        if not self._maps:
            self._maps = measure_maps(self)
        return self._maps

    def with_net(self, net: nn.Module, classes: Classes | None = None) -> Segmenter:
        """Another network that declares the same: this one changed or sped up.

        Args:
            net: takes what ``self.net`` takes.
            classes: classes of ``net``, where they are others.
        """
        classes = classes or self.classes
        maps = {**self._maps}
        if maps:
            maps[LOGITS] = MapInfo(len(classes.names), maps[LOGITS].stride)
        model = Segmenter(
            net,
            classes,
            self.input,
            maps=maps,
            align_corners=self.align_corners,
            min_batch=self.min_batch,
            of_masks=self.of_masks,
        )
        return model.to(self.device)

    def with_input(self, input: InputSpec) -> Segmenter:
        """The same network for images prepared in another way."""
        if input == self.input:
            return self
        return Segmenter(
            self.net,
            self.classes,
            input,
            maps=self._maps,
            align_corners=self.align_corners,
            backbone=self.backbone,
            min_batch=self.min_batch,
            of_masks=self.of_masks,
            origin=self.origin,
        )

    def forward(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) uint8 RGB -> logits at the network's own resolution, and features."""
        spec, size = self.input, self.input.size
        if size is None or size == image.shape[-2:]:
            output = self._prepared(image)
        else:
            output = run_in_one_size(
                self._prepared,
                image,
                size,
                spec.resizing,
                bicubic=spec.bicubic,
                of_masks=self.of_masks,
            )
        if not self.of_masks:
            return output
        return output._replace(logits=output.logits.log_softmax(dim=1))

    def _prepared(self, image: Tensor) -> SegOutput:
        return self.apply_net(self.normalize(image))

    def normalize(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) RGB of 0 to 255 -> as the network was trained."""
        # divided: a product with 1/255 would round to other bits than the images of the past
        pixels = (image.to(self.mean.dtype) / (1 / self.input.scale) - self.mean) / self.std
        return pixels.flip(1) if self.input.bgr else pixels

    def apply_net(self, pixels: Tensor) -> SegOutput:
        """The network on normalised images, which are padded to a size that it takes."""
        height, width = pixels.shape[-2:]
        size = (height, width)
        fitted = size if self.input.takes_any else self.input.fit(size)
        if fitted == size:
            return self._run(pixels)
        pixels = F.pad(pixels, (0, fitted[1] - width, 0, fitted[0] - height))
        output = self._run(pixels)
        return output._replace(
            logits=self._cut(output.logits, size, fitted, exact=True),
            features={n: self._cut(maps, size, fitted) for n, maps in output.features.items()},
        )

    def _run(self, pixels: Tensor) -> SegOutput:
        """The network in the number format of its weights; its maps in that of ``pixels``."""
        dtype = self.dtype
        output = as_output(self.net(pixels.to(dtype)))._replace(align_corners=self.align_corners)
        # unchanged: under autocast, maps have 16 bits; a file may take pixels of 8 bits
        if dtype == pixels.dtype or not pixels.is_floating_point():
            return output
        features = {name: maps.to(pixels.dtype) for name, maps in output.features.items()}
        return output._replace(logits=output.logits.to(pixels.dtype), features=features)

    def _cut(
        self, maps: Tensor, size: tuple[int, int], padded: tuple[int, int], exact: bool = False
    ) -> Tensor:
        """The part of the maps of a padded image that shows the image.

        Where the border of the image falls into a cell, or cells are aligned with the corners of
        the padded image, ``exact`` maps are resized to the pixels before they are cut; others keep
        that cell.
        """
        shown = [
            side * cells / whole
            for side, cells, whole in zip(size, maps.shape[-2:], padded, strict=True)
        ]
        if exact and (self.align_corners or not all(cells.is_integer() for cells in shown)):
            return resize(maps, padded, self.align_corners)[..., : size[0], : size[1]]
        rows, columns = (math.ceil(cells) for cells in shown)
        return maps[..., :rows, :columns]

    def image_output(self, image: UInt8Array) -> SegOutput:
        """(H, W, 3) uint8 RGB -> logits (1, C, h, w) and features, in evaluation mode."""
        with evaluating(self):
            output: SegOutput = self(image_batch([image], self.device))
        return output

    def predict(
        self, image: UInt8Array | str | Path, inference: InferenceConfig | None = None
    ) -> UInt8Array:
        """Class ids of one image.

        Args:
            image: (H, W, 3) uint8 RGB array, anything that NumPy makes one of (a PIL image), or
                an image file.
            inference: scales, flip and sliding window; single scale without it.

        Returns:
            (H, W) uint8.

        Raises:
            UserError: no such file, or an array of another kind.
        """
        array = read_image(Path(image)) if isinstance(image, str | Path) else np.asarray(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
            raise UserError(
                f"image {array.shape} {array.dtype} must be (H, W, 3) uint8 in RGB order"
            )
        return predict_ids(self, array, inference)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Save the network as ``folder/model.safetensors``.

        The file holds the weights, the classes and the input spec. A module
        that aicsd did not build is saved too; :meth:`from_pretrained` then needs it as ``net``.

        Args:
            folder: made if it is not there.

        Returns:
            The file.

        Raises:
            UserError: the folder is a run, whose network must stay as it is, or cannot be written.
        """
        from aicsd.models.model_file import save_model  # it imports this module

        run = RunFolder(folder)
        if run.config.is_file():
            raise UserError(f"{folder} is a run folder, which holds its own model; give another")
        save_model(self, run.model)
        return run.model

    @classmethod
    def from_pretrained(cls, reference: str | Path, net: nn.Module | None = None) -> Segmenter:
        """A trained network in evaluation mode, from a folder or from the Hugging Face hub.

        Args:
            reference: folder of :meth:`save_pretrained`; a model ``user/name`` or
                ``user/name@revision`` on the hub, where there is no such folder; or anything else
                that :func:`aicsd.load_model` takes.
            net: module that gets the weights of a network that aicsd did not build.

        Raises:
            UserError: nothing there, no network, or not a model.
        """
        from aicsd import hub
        from aicsd.models.load import is_there, load_file, load_model  # they import this module

        name = str(reference)
        is_name = not isinstance(reference, Path) and re.fullmatch(HUB_NAME, name) is not None
        if is_name and not is_there(name):
            name = f"{hub.PREFIX}{name}"
        if net is not None and hub.is_hub_name(name):
            return load_file(hub.download(name, MODEL_FILE), net)
        return load_model(name, net)

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Put the network on the Hugging Face hub, with a short model card.

        ``aicsd push RUN`` puts a whole run there: config, metrics, and a card that reports them.

        Args:
            name: ``user/name``; made if it is not there.
            private: make a new model visible to its owner only.

        Returns:
            Address of the commit.

        Raises:
            UserError: no login (``hf auth login``), no access or no network.
        """
        from aicsd.hub_push import NetworkFacts, push_file

        facts = NetworkFacts(self.name, self.classes.names, self.num_parameters())
        with TemporaryDirectory() as folder:
            return push_file(self.save_pretrained(folder), name, facts, private)

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of the declared backbone; none if the network declares none."""
        if not self.backbone:
            return []
        return list(self.net.get_submodule(self.backbone).parameters())

    def require_batch(self, batch_size: int) -> None:
        """Refuse a training batch that is too small for this network.

        Raises:
            UserError: naming the smallest one.
        """
        if batch_size < self.min_batch:
            raise UserError(
                f"data.batch_size is {batch_size}; it must be {self.min_batch} or more, "
                "since the image-level pooling of this network normalises over the batch"
            )

    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def measure_maps(model: Segmenter, side: int = MEASURED_SIDE) -> dict[str, MapInfo]:
    """Channels and strides of all maps, from one forward pass on an empty image."""
    size = model.input.fit((side, side))
    with evaluating(model):
        image = torch.zeros((1, 3, *size), dtype=torch.uint8, device=model.device)
        output = model(image)
    return {
        name: MapInfo(maps.shape[1], round(size[1] / maps.shape[-1]))
        for name, maps in {LOGITS: output.logits, **output.features}.items()
    }
