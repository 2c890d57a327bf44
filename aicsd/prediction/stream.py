"""Pipelines: encoded images on standard input, PNGs on standard output."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from aicsd.errors import BrokenInputError, UserError
from aicsd.images import (
    UInt8Array,
    UnreadableImageError,
    decode_image,
    encode_ids,
    encode_image,
    read_image,
)
from aicsd.legend import draw_legend, with_legend
from aicsd.models import Segmenter
from aicsd.models.inference import NotEnoughMemoryError
from aicsd.prediction.inputs import Input
from aicsd.prediction.network import predict_images
from aicsd.prediction.settings import PredictConfig
from aicsd.visualization import colorize, overlay

PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_START = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
CHUNK = 1 << 16
MAX_BYTES = 1 << 29
"""Bytes of one encoded image; a stream that never ends would fill the memory."""


MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""Next marker in the compressed part of a JPEG: FF 00 is a byte FF, D0 to D7 are restarts."""


class _Bytes:
    """A stream of which the next bytes can be read before they are taken."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.held = bytearray()
        self._taken = 0

    def begin_image(self) -> None:
        """Count the bytes of the next image."""
        self._taken = 0

    def _require_end(self, size: int) -> None:
        if self._taken + size > MAX_BYTES:
            raise BrokenInputError(
                f"standard input: an image of more than {MAX_BYTES >> 20} MB; no image is that long"
            )

    def more(self) -> bool:
        """Hold more of what has come, without waiting for all; False at the end."""
        self._require_end(len(self.held))
        new = self._stream.read1(CHUNK)  # type: ignore[attr-defined]
        self.held += new
        return bool(new)

    def peek(self, count: int) -> bytes:
        """The next ``count`` bytes, fewer at the end."""
        while len(self.held) < count and self.more():
            pass
        return bytes(self.held[:count])

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes, which are then gone."""
        self._require_end(count)
        taken = self.peek(count)
        if len(taken) < count:
            raise BrokenInputError("standard input ends within an image")
        del self.held[:count]
        self._taken += count
        return taken

    def take_until_marker(self) -> bytes:
        """Everything before the next marker of a JPEG."""
        searched = 0
        while (found := MARKER.search(self.held, searched)) is None:
            searched = max(0, len(self.held) - 1)
            if not self.more():
                raise BrokenInputError("standard input ends within an image")
        return self.take(found.start())


def split_images(stream: BinaryIO) -> Iterator[bytes]:
    """The files in a stream of PNGs and JPEGs, each as soon as its last byte is there.

    A stream that begins with another format is one image.

    Args:
        stream: with ``read1``, as standard input has it.

    Raises:
        BrokenInputError: the stream ends within an image, goes on with what is none, or an image
            has no end.
    """
    source = _Bytes(stream)
    count = 0
    while start := source.peek(len(PNG_START)):
        source.begin_image()
        if start == PNG_START:
            yield _take_png(source)
        elif start.startswith(JPEG_START):
            yield _take_jpeg(source)
        elif count == 0:
            while source.more():
                pass
            yield source.take(len(source.held))
        else:
            raise BrokenInputError(
                f"standard input: what follows image {count} is neither PNG nor JPEG; "
                "only these can follow one another"
            )
        count += 1


def _take_png(source: _Bytes) -> bytes:
    parts = [source.take(len(PNG_START))]
    while True:
        head = source.take(8)  # length of the body, name
        parts += [head, source.take(int.from_bytes(head[:4], "big") + 4)]
        if head[4:] == b"IEND":
            return b"".join(parts)


def _take_jpeg(source: _Bytes) -> bytes:
    parts = [source.take(2)]
    while True:
        parts.append(source.take_until_marker())
        marker = source.take(2)
        parts.append(marker)
        if marker == JPEG_END:
            return b"".join(parts)
        # segments have a length, so that a preview in one does not end the image
        length = source.take(2)
        parts += [length, source.take(max(0, int.from_bytes(length, "big") - 2))]


def read_stream(stream: BinaryIO) -> Iterator[UInt8Array | UserError]:
    """The decoded images of a stream, (H, W, 3) RGB, or what is wrong with one."""
    number = 0
    try:
        for number, data in enumerate(split_images(stream), 1):
            try:
                image = decode_image(data, f"standard input: image {number}")
            except UnreadableImageError:
                yield BrokenInputError(
                    f"standard input: image {number} is not readable (truncated or another format)"
                )
            except UserError as error:
                yield BrokenInputError(str(error))
            else:
                yield image
    except BrokenInputError as error:
        yield error
    else:
        if number == 0:
            yield BrokenInputError("standard input is empty; it takes encoded images")


def read_files(inputs: Iterable[Input]) -> Iterator[UInt8Array | UserError]:
    """The decoded images of files, (H, W, 3) RGB, or what is wrong with one."""
    for item in inputs:
        try:
            yield read_image(item.path)
        except UserError as error:
            yield error


def stream_output(config: PredictConfig) -> str:
    """The one output that goes to standard output: class ids unless another is named.

    Raises:
        UserError: several, or one that is not a picture.
    """
    outputs = config.outputs or ("ids",)
    if len(outputs) > 1 or outputs == ("probabilities",):
        raise UserError(
            f"outputs is {','.join(outputs)}; standard output takes one of ids, overlay, color"
        )
    return outputs[0]


def predict_stream(
    model: Segmenter, images: Iterable[UInt8Array | UserError], config: PredictConfig
) -> Iterator[bytes | UserError]:
    """One PNG for every image, in their order and one by one; errors are handed on.

    Args:
        model: in evaluation mode, on the device of ``config``.
        images: result of :func:`read_stream` or :func:`read_files`.
        config: settings with one output; see :func:`stream_output`.
    """
    output = stream_output(config)
    names, palette = model.classes
    for image in images:
        if isinstance(image, UserError):
            yield image
            continue
        try:
            ((ids, _),) = predict_images(model, [image], config)
        except NotEnoughMemoryError as error:
            yield error
            continue
        if output == "ids":
            yield encode_ids(ids, palette)
        elif output == "color":
            yield encode_image(colorize(ids, palette))
        else:
            # all classes: pictures of one size stay so, as a video encoder behind needs it
            height, width = image.shape[:2]
            legend = draw_legend(names, palette, range(len(names)), width, height)
            picture = overlay(image, ids, palette, config.opacity)
            yield encode_image(with_legend(picture, legend))
