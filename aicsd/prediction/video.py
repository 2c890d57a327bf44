"""Videos: every frame predicted, the pictures put together again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from aicsd.errors import BrokenInputError, UserError, one_line
from aicsd.files import atomic_folder, atomic_path
from aicsd.images import UInt8Array
from aicsd.legend import draw_legend, with_legend
from aicsd.models import Segmenter
from aicsd.models.inference import NotEnoughMemoryError
from aicsd.prediction.inputs import Input
from aicsd.prediction.network import predict_images
from aicsd.prediction.settings import PredictConfig
from aicsd.videos import VideoReader, require_pyav
from aicsd.visualization import colorize, overlay, save_ids

CODEC = "libx264"
QUALITY = {"crf": "18", "preset": "fast"}


def predict_video(
    model: Segmenter,
    item: Input,
    out: Path,
    config: PredictConfig,
    frame_done: Callable[[], None] = lambda: None,
) -> int:
    """Write the pictures of a video as H.264 without sound, and its ids as a folder of PNGs.

    Every frame keeps its time, so the frame rate is that of the source. An odd side gets one more
    row or column, the last one again, for H.264 has colours for pairs of pixels only.

    Args:
        model: in evaluation mode, on the device of ``config``.
        item: the video.
        out: folder of the results.
        config: settings of the results; ``batch_size`` frames share a forward pass.
        frame_done: called after every frame.

    Returns:
        Number of frames.

    Raises:
        BrokenInputError: the video cannot be read; then nothing is written.
        UserError: a result that cannot be written, or no PyAV.
    """
    results = item.results(out, config.outputs_of(video=True))
    names, palette = model.classes
    legend: UInt8Array | None = None
    count = 0
    with ExitStack() as stack:
        source = stack.enter_context(VideoReader(item.path, config.workers))
        pictures = {
            output: stack.enter_context(_Writer(path, source))
            for output, path in results.items()
            if output != "ids"
        }
        folder = stack.enter_context(atomic_folder(results["ids"])) if "ids" in results else None
        frames = source.frames()
        while batch := list(islice(frames, config.batch_size)):
            try:
                predictions = predict_images(model, [frame.image for frame in batch], config)
            except NotEnoughMemoryError as error:
                raise BrokenInputError(f"{item.path}: {error}") from error
            for (image, time), (ids, _) in zip(batch, predictions, strict=True):
                if folder is not None:
                    save_ids(ids, palette, folder / f"{count:06}.png")
                if "color" in pictures:
                    pictures["color"].add(colorize(ids, palette), time)
                if "overlay" in pictures:
                    if legend is None:  # a legend of all classes: a video has frames of one size
                        height, width = image.shape[:2]
                        legend = draw_legend(names, palette, range(len(names)), width, height)
                    picture = overlay(image, ids, palette, config.opacity)
                    pictures["overlay"].add(with_legend(picture, legend), time)
                count += 1
                frame_done()
        if not count:
            raise BrokenInputError(f"{item.path} has no frames")
    return count


class _Writer:
    """An MP4 that takes its place when all frames are in it."""

    def __init__(self, path: Path, source: VideoReader) -> None:
        self._av = require_pyav()
        self._path, self._source = path, source
        self._stack = ExitStack()
        self._stream: Any = None

    def __enter__(self) -> _Writer:
        temporary = self._stack.enter_context(atomic_path(self._path))
        try:
            self._container = self._stack.enter_context(self._av.open(str(temporary), "w"))
        except self._av.FFmpegError as error:
            self._stack.close()
            raise self._failed(error) from error
        return self

    def add(self, picture: UInt8Array, time: int) -> None:
        """One more frame, (H, W, 3) RGB, shown from ``time`` on."""
        height, width = picture.shape[:2]
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            if self._stream is None:
                self._stream = self._container.add_stream(
                    CODEC, rate=self._source.rate, options=dict(QUALITY)
                )
                self._stream.height, self._stream.width = picture.shape[:2]
                self._stream.pix_fmt = "yuv420p"
                self._stream.codec_context.time_base = self._source.time_base
            frame = self._av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, self._source.time_base
            self._container.mux(self._stream.encode(frame))
        except self._av.FFmpegError as error:
            raise self._failed(error) from error

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        try:
            if kind is None and self._stream is not None:
                self._container.mux(self._stream.encode(None))
        except self._av.FFmpegError as error:
            raise self._failed(error) from error
        finally:
            self._stack.__exit__(kind, *rest)

    def _failed(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or one_line(error, 500)
        return UserError(f"cannot write {self._path}: {reason}")
