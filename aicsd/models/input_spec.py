"""The input spec of a network: normalisation, channel order and the sizes that it takes."""

from __future__ import annotations

import math
from typing import NamedTuple

from aicsd.models.one_size import Resizing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class InputSpec(NamedTuple):
    """Input of a network: (pixel * scale - mean) / std, channel by channel."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean of each channel, in RGB order."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation of each channel, in RGB order."""
    scale: float = 1 / 255
    """Factor on pixels of 0 to 255, before the mean is subtracted."""
    bgr: bool = False
    """Whether the network takes the channels in the order blue, green, red."""
    multiple: int = 1
    """Number that both sides must be multiples of; others are padded by the mean colour."""
    least: int = 1
    """Smallest side of an image; a smaller one is padded too."""
    size: tuple[int, int] | None = None
    """(H, W) that a network takes if it takes no other; images are resized to it."""
    window: int = 0
    """Side in pixels of the windows that larger images are cut into; 0 takes them whole."""
    bicubic: bool = False
    """Whether images are resized to ``size`` bicubically, and not bilinearly."""
    resizing: Resizing = "stretch"
    """Way of resizing images of another shape to ``size``."""

    @property
    def color(self) -> tuple[int, int, int]:
        """Mean colour, RGB, which normalisation makes 0; padding has it."""
        red, green, blue = (min(max(round(value / self.scale), 0), 255) for value in self.mean)
        return red, green, blue

    @property
    def takes_any(self) -> bool:
        """Whether the network takes images of every size as they are."""
        return self.multiple == 1 and self.least == 1 and self.size is None

    def fit(self, size: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the network's input for an image of ``size``."""
        height, width = (
            math.ceil(max(side, self.least) / self.multiple) * self.multiple for side in size
        )
        return self.size or (height, width)


IMAGENET = InputSpec()
