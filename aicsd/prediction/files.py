"""Read, predict and write many images, the three at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from aicsd.errors import BrokenInputError, UserError
from aicsd.files import atomic_path
from aicsd.images import UInt8Array, read_image
from aicsd.legend import classes_in, draw_legend, with_legend
from aicsd.models import Segmenter
from aicsd.models.inference import NotEnoughMemoryError
from aicsd.prediction.inputs import Input
from aicsd.prediction.network import Prediction, predict_images
from aicsd.prediction.settings import PredictConfig
from aicsd.visualization import colorize, overlay, save_ids, save_image

A = TypeVar("A")
B = TypeVar("B")
WAITING_BATCHES = 4
"""Decoded images that wait for others of their size, in batches: bounds the memory."""


class Outcome(NamedTuple):
    """An input that is done, or why it is not."""

    path: Path
    images: int
    """Predicted: 1, the frames of a video, or 0."""
    error: str | None = None


def count_images(inputs: Iterable[Input]) -> int:
    """Number of images, and of frames of videos by their headers."""
    from aicsd.videos import count_frames

    return sum(count_frames(item.path) if item.is_video else 1 for item in inputs)


class _Loaded(NamedTuple):
    source: Input
    image: UInt8Array | UserError


def predict_files(
    model: Segmenter,
    inputs: Sequence[Input],
    out: Path,
    config: PredictConfig,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[Outcome]:
    """Write the results of every input; see :func:`aicsd.prediction.inputs.plan_results`.

    Args:
        model: in evaluation mode, on the device of ``config``.
        inputs: result of :func:`aicsd.prediction.inputs.find_inputs`.
        out: folder of the results; made if it is not there.
        config: settings of the results.
        advance: called after every image and every frame.

    Yields:
        Every input when its results are written, or it turned out to be broken. Images come
        first, in the order in which batches of equal size fill up.

    Raises:
        UserError: a result that cannot be written.
    """
    videos = [item for item in inputs if item.is_video]
    if videos:
        from aicsd.prediction.video import predict_video
        from aicsd.videos import require_pyav

        require_pyav()  # before hours of images are done
    images = [item for item in inputs if not item.is_video]
    for outcome in _predict_image_files(model, images, out, config):
        advance()
        yield outcome
    for item in videos:
        try:
            frames = predict_video(model, item, out, config, advance)
        except BrokenInputError as error:
            yield Outcome(item.path, 0, str(error))
        else:
            yield Outcome(item.path, frames)


def _predict_image_files(
    model: Segmenter, items: Sequence[Input], out: Path, config: PredictConfig
) -> Iterator[Outcome]:
    outputs = config.outputs_of(video=False)

    def write(done: tuple[_Loaded, Prediction | None]) -> Outcome:
        (item, image), prediction = done
        if isinstance(image, UserError) or prediction is None:
            return Outcome(item.path, 0, str(image))
        write_results(image, prediction, item.results(out, outputs), model, config.opacity)
        return Outcome(item.path, 1)

    pool = ThreadPoolExecutor(config.workers) if config.workers else None
    try:
        loaded = _ahead(pool, _load, items, config.workers + config.batch_size)
        predicted = _predict_batches(model, loaded, config, "probabilities" in outputs)
        yield from _ahead(pool, write, predicted, config.workers)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _load(item: Input) -> _Loaded:
    try:
        return _Loaded(item, read_image(item.path))
    except UserError as error:
        return _Loaded(item, error)


def _ahead(
    pool: ThreadPoolExecutor | None, function: Callable[[A], B], items: Iterable[A], depth: int
) -> Iterator[B]:
    """``map`` with up to ``depth`` calls in advance."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _predict_batches(
    model: Segmenter, loaded: Iterable[_Loaded], config: PredictConfig, probabilities: bool
) -> Iterator[tuple[_Loaded, Prediction | None]]:
    """Every image with its prediction; one that is broken or too large has none."""

    def predict(group: list[_Loaded]) -> Iterator[tuple[_Loaded, Prediction | None]]:
        images = [item.image for item in group if not isinstance(item.image, UserError)]
        try:
            predictions = predict_images(model, images, config, probabilities)
        except NotEnoughMemoryError as error:
            for item in group:
                told = NotEnoughMemoryError(f"{item.source.path}: {error}")
                yield item._replace(image=told), None
        else:
            yield from zip(group, predictions, strict=True)

    groups: dict[tuple[int, ...], list[_Loaded]] = {}
    for item in loaded:
        if isinstance(item.image, UserError):
            yield item, None
            continue
        shape = item.image.shape
        groups.setdefault(shape, []).append(item)
        if len(groups[shape]) == config.batch_size:
            yield from predict(groups.pop(shape))
        elif sum(map(len, groups.values())) >= WAITING_BATCHES * config.batch_size:
            yield from predict(groups.pop(next(iter(groups))))
    for group in groups.values():
        yield from predict(group)


def write_results(
    image: UInt8Array,
    prediction: Prediction,
    results: dict[str, Path],
    model: Segmenter,
    opacity: float,
) -> None:
    """Write the files of one image; each is whole or absent.

    Args:
        image: (H, W, 3) RGB.
        prediction: prediction of the image.
        results: output -> file.
        model: has the classes' colours.
        opacity: opacity of the overlay.
    """
    names, palette = model.classes
    for output, path in results.items():
        if output == "ids":
            save_ids(prediction.ids, palette, path)
        elif output == "overlay":
            picture = overlay(image, prediction.ids, palette, opacity)
            shown = classes_in(prediction.ids, len(names))
            legend = draw_legend(names, palette, shown, image.shape[1], image.shape[0])
            save_image(with_legend(picture, legend), path)
        elif output == "color":
            save_image(colorize(prediction.ids, palette), path)
        else:
            assert prediction.probabilities is not None
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.save(file, prediction.probabilities)
