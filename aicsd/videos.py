"""Frames of video files."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aicsd.errors import BrokenInputError, one_line
from aicsd.extras import require
from aicsd.images import UInt8Array

FALLBACK_RATE = Fraction(25)
"""Frames per second of a file without that entry."""


class Frame(NamedTuple):
    """One picture of a video."""

    image: UInt8Array
    """(H, W, 3) RGB, upright."""
    time: int
    """Since the first, in units of the reader's time base."""


def require_pyav() -> Any:
    """The module ``av``."""
    return require("av", "video", "videos need PyAV")


def count_frames(path: Path) -> int:
    """Number of frames in the header of a video; 0 if it has none or cannot be read."""
    av = require_pyav()
    try:
        with av.open(str(path)) as container:
            return sum(stream.frames for stream in container.streams.video[:1])
    except (av.FFmpegError, OSError):
        return 0


class VideoReader:
    """First video stream of a file, decoded ahead in ``workers`` threads."""

    def __init__(self, path: Path, workers: int) -> None:
        self._av = require_pyav()
        self._path = path
        try:
            self._container = self._av.open(str(path))
        except (self._av.FFmpegError, OSError) as error:
            raise self._broken(error) from error
        if not self._container.streams.video:
            self._container.close()
            raise BrokenInputError(f"{path} has no video in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO" if workers else "SLICE"
        self._stream.codec_context.thread_count = max(1, workers)
        self.rate: Fraction = self._stream.average_rate or FALLBACK_RATE
        # the coarsest grid of all times; some formats round them to milliseconds, off the grid
        self.time_base: Fraction = 1 / (self._stream.base_rate or self.rate)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def frames(self) -> Iterator[Frame]:
        """All frames, from time 0 on."""
        step = max(1, round(1 / (self.rate * self.time_base)))
        first: int | None = None
        time = -step
        shape: tuple[int, ...] | None = None
        try:
            for frame in self._container.decode(self._stream):
                if frame.pts is None:
                    time += step
                else:
                    first = frame.pts if first is None else first
                    since = (frame.pts - first) * frame.time_base
                    time = max(time + 1, round(since / self.time_base))  # increasing
                image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                if image.shape != (shape := shape or image.shape):
                    raise BrokenInputError(
                        f"{self._path} changes from {shape[1]}x{shape[0]} to "
                        f"{image.shape[1]}x{image.shape[0]} on the way; cut it there"
                    )
                yield Frame(np.ascontiguousarray(image), time)
        except self._av.FFmpegError as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> BrokenInputError:
        reason = getattr(error, "strerror", None) or one_line(error, 500)
        return BrokenInputError(f"{self._path} is not a readable video: {reason}")
