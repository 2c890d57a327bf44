"""Videos without labels: their frames as photos."""

from __future__ import annotations

from pathlib import Path

import cv2

from aicsd.errors import UserError
from aicsd.files import atomic_folder
from aicsd.images import is_video
from aicsd.messages import say
from aicsd.videos import VideoReader

MOST_FRAMES = 1000
"""Frames that are kept of a video at most: neighbours are nearly equal."""
QUALITY = 95
WORKERS = 2
SUFFIX = ".frames"


def photo_folder(path: Path) -> Path:
    """``path``, or the folder of the frames of the video that it is.

    The folder ``VIDEO.frames`` is made beside the video where it is not there: JPEG files of every
    nth frame, with the n that gives from 500 to 1000 of a long video and 1 of a short one.

    Raises:
        UserError: a video that cannot be read, no PyAV, a folder that cannot be written, or one
            that is older than the video.
    """
    if not (is_video(path) and path.is_file()):
        return path
    folder = path.with_name(f"{path.name}{SUFFIX}")
    if not folder.is_dir():
        try:
            _extract(path, folder)
        except UserError:
            if not folder.is_dir():  # another process was faster
                raise
    if folder.stat().st_mtime < path.stat().st_mtime:
        raise UserError(f"{folder} is older than {path}: remove it, so that it is made again")
    return folder


def _extract(path: Path, folder: Path) -> None:
    with atomic_folder(folder) as place, VideoReader(path, WORKERS) as reader:
        say(f"extracting the frames of {path} to {folder}")
        every, kept = 1, 0
        for number, frame in enumerate(reader.frames()):
            if number % every:
                continue
            if kept == MOST_FRAMES:  # every second one goes
                every, kept = 2 * every, kept // 2
                for file in place.iterdir():
                    if int(file.stem) % every:
                        file.unlink()
                if number % every:
                    continue
            picture = cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)
            _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            (place / f"{number:06}.jpg").write_bytes(encoded.tobytes())
            kept += 1
        if not kept:
            raise UserError(f"{path} has no frames")
