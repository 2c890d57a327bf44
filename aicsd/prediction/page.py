"""Local web page with the predictions of teacher and student for an image."""

from __future__ import annotations

import html
import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.extras import require
from aicsd.images import UInt8Array, image_size, read_image
from aicsd.losses import ics_matrix
from aicsd.models import Segmenter
from aicsd.models.views import WHOLE_PIXELS
from aicsd.visualization import overlay
from aicsd.visualization.figures import SEQUENTIAL
from aicsd.visualization.views import ERROR_PALETTE, WRONG, ids_and_logits

ADDRESS = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 100
BUTTONS = ["download", "fullscreen"]
"""Buttons of a picture. Gradio's third one would share it on the internet."""
MAX_UPLOAD = "64mb"
KEPT = (600, 3600)
"""Seconds after which uploads are checked, and deleted; at the end all are."""
PAIRS_LISTED = 5
"""Pairs of classes that the page names where two networks disagree."""
UNKNOWN_ID = 254
"""Id of a class that the other network does not predict."""
FONTS = ("system-ui", "sans-serif")
"""Fonts of the machine; a page must not fetch any."""


class Answer(NamedTuple):
    """Prediction of one network for an image, as the page shows it."""

    ids: UInt8Array
    """(H, W) class ids."""
    matrix: UInt8Array
    """Picture of the inter-class similarity, (h, w, 3)."""
    seconds: float
    """Time from the image to the ids."""


@torch.no_grad()
def predict_all(models: Mapping[str, Segmenter], image: UInt8Array) -> dict[str, Answer]:
    """Predictions of all networks for an image (H, W, 3) uint8 RGB; matrices on one scale."""
    ids: dict[str, UInt8Array] = {}
    matrices: dict[str, torch.Tensor] = {}
    seconds: dict[str, float] = {}
    for name, model in models.items():
        begin = time.perf_counter()
        ids[name], logits = ids_and_logits(model, image)
        seconds[name] = time.perf_counter() - begin
        matrices[name] = ics_matrix(logits)[0].cpu()
    largest = max(float(matrix.max()) for matrix in matrices.values())
    return {
        name: Answer(
            ids[name], matrix_picture(matrices[name], model.classes.names, largest), seconds[name]
        )
        for name, model in models.items()
    }


def matrix_picture(matrix: torch.Tensor, names: Sequence[str], largest: float) -> UInt8Array:
    """(C, C) inter-class similarity as a picture, (h, w, 3); colours from 0 to ``largest``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 2.6 + 0.2 * len(names)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    shown = axis.imshow(matrix.numpy(), cmap=SEQUENTIAL, vmin=0, vmax=max(largest, 1e-9))
    axis.set_title("inter-class similarity", fontsize=10)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    figure.colorbar(shown, ax=axis, label="KL(row || column), nats", shrink=0.8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.array(Image.open(buffer).convert("RGB"))


def legend(classes: Classes, ids: UInt8Array) -> str:
    """HTML of the classes that ``ids`` holds, the largest first, with their share of the pixels."""
    counts = np.bincount(ids.ravel(), minlength=len(classes.names))
    parts = [
        f'<span style="display:inline-block;margin:2px 10px 2px 0;white-space:nowrap">'
        f'<span style="display:inline-block;width:12px;height:12px;border:1px solid #888;'
        f'background:rgb{tuple(classes.palette[index])}"></span> '
        f"{html.escape(classes.names[index])} {100 * counts[index] / ids.size:.1f}&nbsp;%</span>"
        for index in np.argsort(-counts[: len(classes.names)], kind="stable")
        if counts[index]
    ]
    return f"<div>{''.join(parts)}</div>"


def read_upload(path: Path) -> UInt8Array:
    """(H, W, 3) uint8 RGB of an uploaded file, upright by its EXIF orientation.

    Raises:
        UserError: no readable image, or more pixels than this page takes.
    """
    try:
        height, width = image_size(path)
        if height * width <= WHOLE_PIXELS:
            return read_image(path)
    except UserError as error:  # the temporary path of an upload means nothing to its reader
        raise UserError(str(error).replace(str(path), path.name)) from error
    raise UserError(
        f"{path.name} has {width} x {height} pixels, and this page takes up to "
        f"{WHOLE_PIXELS / 1e6:.1f} million; make it smaller, or use aicsd predict"
    )


def translate(ids: UInt8Array, classes: Classes, target: Classes) -> UInt8Array:
    """(H, W) ids of ``classes`` as those of the same names in ``target``; others get 254."""
    numbers = {name: number for number, name in enumerate(target.names)}
    table = np.full(256, UNKNOWN_ID, np.uint8)
    for number, name in enumerate(classes.names):
        table[number] = numbers.get(name, UNKNOWN_ID)
    found: UInt8Array = table[ids]
    return found


def disagreement(image: UInt8Array, one: UInt8Array, other: UInt8Array) -> UInt8Array:
    """The image in pale grey, (H, W, 3), with the pixels marked where the (H, W) ids differ."""
    grey = image.mean(axis=2, keepdims=True) * 0.5 + 127
    marked = np.where((one != other)[..., None], np.array(ERROR_PALETTE[WRONG]), grey)
    picture: UInt8Array = np.rint(marked).astype(np.uint8)
    return picture


def disagreeing_pairs(
    one: UInt8Array, other: UInt8Array, names: Sequence[str], titles: Sequence[str]
) -> str:
    """HTML: how much of the image differs, and the largest pairs of classes in it.

    Args:
        one: (H, W) class ids.
        other: the same of the other network; 254 for a class without a number.
        names: names of the classes.
        titles: titles of the two networks.
    """
    differs = one != other
    pairs, counts = np.unique(np.stack([one[differs], other[differs]]), axis=1, return_counts=True)
    lines = [f"They disagree on {100 * differs.mean():.1f}&nbsp;% of the pixels."]
    for place in np.argsort(-counts, kind="stable")[:PAIRS_LISTED]:
        said = (
            f"{html.escape(title)}: {html.escape(_name(names, number))}"
            for title, number in zip(titles, pairs[:, place], strict=True)
        )
        lines.append(f"{', '.join(said)}: {100 * counts[place] / one.size:.1f}&nbsp;%")
    return "<br>".join(lines)


def _name(names: Sequence[str], number: int) -> str:
    return names[number] if number < len(names) else "another class"


def require_gradio() -> Any:
    """The module ``gradio``, with its usage reports switched off."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    return require("gradio", "demo", "the demo page needs Gradio")


def build_page(models: Mapping[str, Segmenter], device: str = "cpu") -> Any:
    """The Gradio page.

    Args:
        models: by the title of their column, in evaluation mode on ``device``.
        device: device of the models.

    Raises:
        UserError: Gradio is not installed.
    """
    gradio = require_gradio()
    compares = len(models) == 2

    def read(payload: Any) -> UInt8Array | None:
        return None if payload is None else read_upload(Path(payload.path))

    def show(image: UInt8Array | None, opacity: float) -> list[Any]:
        if image is None:
            return [None, "", "", None] * len(models) + ([None, ""] if compares else [])
        return shown_values(models, image, opacity, device)

    with gradio.Blocks(title="aicsd", analytics_enabled=False, delete_cache=KEPT) as page:
        with gradio.Row():
            source = gradio.Image(
                type="numpy",
                image_mode="RGB",
                sources=["upload", "clipboard"],
                label="image",
                height=320,
            )
            source.preprocess = refusing(read, gradio.Error)
            opacity = gradio.Slider(0, 1, 0.5, step=0.05, label="opacity of the class colours")
        results: list[Any] = []
        with gradio.Row():
            for name, model in models.items():
                with gradio.Column():
                    gradio.Markdown(f"### {name}{_size_of(model)}")
                    results += [
                        gradio.Image(
                            label="classes", format="png", interactive=False, buttons=BUTTONS
                        ),
                        gradio.Markdown(),
                        gradio.HTML(),
                        gradio.Image(
                            label="inter-class similarity",
                            show_label=False,
                            format="png",
                            interactive=False,
                            buttons=BUTTONS,
                        ),
                    ]
            if compares:
                with gradio.Column():
                    gradio.Markdown("### where they disagree")
                    results += [
                        gradio.Image(
                            label="disagreement", format="png", interactive=False, buttons=BUTTONS
                        ),
                        gradio.HTML(),
                    ]
        gradio.on(
            [source.change, opacity.release], show, [source, opacity], results, api_name=False
        )
    return page


def shown_values(
    models: Mapping[str, Segmenter], image: UInt8Array, opacity: float, device: str
) -> list[Any]:
    """Contents of the results of :func:`build_page` for an image, in their order."""
    predictions = predict_all(models, image)
    values: list[Any] = []
    for name, model in models.items():
        found = predictions[name]
        picture = overlay(image, found.ids, model.classes.palette, opacity)
        speed = (
            f"{1000 * found.seconds:.0f} ms on {device} for "
            f"{image.shape[1]} x {image.shape[0]} pixels"
        )
        values += [picture, speed, legend(model.classes, found.ids), found.matrix]
    if len(models) == 2:
        (one, first), (other, second) = models.items()
        ids = translate(predictions[one].ids, first.classes, second.classes)
        others = predictions[other].ids
        values += [
            disagreement(image, ids, others),
            disagreeing_pairs(ids, others, second.classes.names, (one, other)),
        ]
    return values


def refusing(read: Callable[[Any], Any], error_class: Any) -> Callable[[Any], Any]:
    """``read`` of an upload, with one line on the page for a file other than an image."""

    def call(payload: Any) -> Any:
        try:
            return read(payload)
        except UserError as error:
            raise error_class(str(error), print_exception=False) from error
        except Exception as error:  # Pillow raises nearly anything
            text = "this file is not a readable image; the page takes PNG, JPEG, BMP, TIFF and WebP"
            raise error_class(text, print_exception=False) from error

    return call


def _size_of(model: Segmenter) -> str:
    count = model.num_parameters()  # 0 if an exported model does not store it
    return f", {count / 1e6:.2f} M parameters" if count else ""


def launch(page: Any, port: int | None) -> str:
    """Open the page to this machine alone and return its address; it is served in the background.

    Args:
        page: result of :func:`build_page`.
        port: to listen on; None takes the first free one from 7860 on.

    Raises:
        UserError: the port is taken.
    """
    gradio = require_gradio()
    theme = gradio.themes.Default(font=FONTS, font_mono=("monospace",))
    try:
        _, address, _ = page.launch(
            server_name=ADDRESS,
            server_port=port,
            share=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            theme=theme,
            enable_monitoring=False,
            max_file_size=MAX_UPLOAD,
        )
    except OSError as error:
        wanted = f"{port}" if port is not None else f"{FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
        raise UserError(f"port {wanted} cannot be used: taken; choose another --port") from error
    return str(address)
