"""Settings of prediction."""

from __future__ import annotations

from dataclasses import dataclass, field

from aicsd.errors import UserError, suggest
from aicsd.models.inference import InferenceConfig

OUTPUTS = ("ids", "overlay", "color", "probabilities")
IMAGE_OUTPUTS = ("ids", "overlay")
VIDEO_OUTPUTS = ("overlay",)


@dataclass(frozen=True)
class PredictConfig:
    """Conversion of images into result files.

    Args:
        outputs: any of ``OUTPUTS``; empty: ids and overlay of an image, the overlay of a video.
        opacity: opacity of the class colours in an overlay, 0 to 1.
        batch_size: images of equal size, or frames of a video, in one forward pass.
        workers: threads that read images and write results while the network computes; 0 does
            one after the other. The results are the same.
        inference: scales, mirrored views and windows.
        device: device of the model.
    """

    outputs: tuple[str, ...] = ()
    opacity: float = 0.5
    batch_size: int = 1
    workers: int = 2
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    device: str = "cpu"

    def __post_init__(self) -> None:
        for output in self.outputs:
            if output not in OUTPUTS:
                raise UserError(f"outputs: unknown output {output!r}{suggest(output, OUTPUTS)}")
        if not 0 <= self.opacity <= 1:
            raise UserError(f"opacity is {self.opacity}; it is 0 to 1")
        if self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be 1 or more")
        if self.workers < 0:
            raise UserError(f"workers is {self.workers}; it must be 0 or more")

    def outputs_of(self, video: bool) -> tuple[str, ...]:
        """Outputs for one image or video."""
        return self.outputs or (VIDEO_OUTPUTS if video else IMAGE_OUTPUTS)


def read_outputs(text: str | None) -> tuple[str, ...]:
    """``ids,overlay`` -> its parts; none for None.

    Raises:
        UserError: a text without any.
    """
    if text is None:
        return ()
    parts = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise UserError(f"outputs is empty; give some of {', '.join(OUTPUTS)}")
    return parts
