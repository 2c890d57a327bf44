"""Write a model to a file, and check it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from aicsd.data.protocol import SegDataset
from aicsd.errors import UserError, one_line
from aicsd.exporting.check import Parity, compare, compare_int8
from aicsd.exporting.graph import ExportGraph, describe, file_size, trace
from aicsd.files import atomic_folder, atomic_path
from aicsd.formats import FORMATS, Format, format_of
from aicsd.formats.base import Exported, Images
from aicsd.models import Segmenter
from aicsd.models.exported import ExportedSegmenter
from aicsd.models.inference import image_batch
from aicsd.types import Output


def check_target(
    out: Path,
    format_name: str | None = None,
    int8: bool = False,
    size: tuple[int, int] | None = None,
) -> Format:
    """The format that ``out`` will have.

    Raises:
        UserError: the ending does not belong to it, a file is there already, INT8 is not offered
            for it, it needs a size, or a library for it is not installed.
    """
    found = format_of(out, format_name)
    if int8 and found.quantize is None:
        offered = [known.name for known in FORMATS if known.quantize is not None]
        words = f"{', '.join(offered[:-1])} and {offered[-1]}"
        raise UserError(f"int8 is for the formats {words}, not for {found.name}: {found.int8_note}")
    if found.one_size and size is None:
        raise UserError(
            f"{found.title} files take images of one size: give --size WIDTHxHEIGHT, the size of "
            "the images where the model will run"
        )
    for path in found.files(out):
        if path.exists():
            raise UserError(f"out: {path} exists; choose another file or remove it")
    found.require_libraries(int8)
    return found


def require_classes(model: Segmenter, dataset: SegDataset) -> None:
    """Refuse to calibrate or measure on images of other classes.

    Raises:
        UserError: naming both.
    """
    if model.classes.names != dataset.classes.names:
        raise UserError(
            f"the model was trained on the classes {list(model.classes.names)} but the dataset has "
            f"{list(dataset.classes.names)}; calibrate on the data that it was trained on"
        )


def export_model(
    model: Segmenter,
    out: Path,
    output: Output = "logits",
    calibration: SegDataset | None = None,
    size: tuple[int, int] | None = None,
) -> Parity:
    """Write ``model`` to ``out``, whose ending selects the format.

    The file takes images (B, H, W, 3) uint8 RGB, any number of any size unless ``size`` is given,
    and holds the normalisation, the class names and the palette. It appears at ``out`` once it is
    checked.

    Args:
        model: in evaluation mode.
        out: a file that does not exist.
        output: ``logits`` (B, C, H, W), ``native`` logits at the network's own stride, or
            ``labels`` (B, H, W) uint8, the arg max inside.
        calibration: training images; with them the file is INT8.
        size: (H, W) of the only images that the file takes, one at a time; some formats need it.

    Returns:
        How well the file, before it was made INT8, agrees with PyTorch.

    Raises:
        UserError: what :func:`check_target` refuses, images of other classes, a size that the
            network does not take, a model that is exported already, a network that the format
            cannot express, or a file that does not compute what PyTorch does.
    """
    if isinstance(model, ExportedSegmenter):
        raise UserError("the model is exported already; export the run that it came from")
    size = file_size(model, size)
    written = check_target(out, int8=calibration is not None, size=size)
    if calibration is not None:
        require_classes(model, calibration)
    graph = ExportGraph(model, output).eval()
    with ExitStack() as stack:
        # before the work, so that an unwritable folder is reported early
        place = atomic_folder if written.folder else atomic_path
        targets = [stack.enter_context(place(path)) for path in written.files(out)[::-1]]
        folder = Path(stack.enter_context(TemporaryDirectory()))
        built = folder / f"float{written.suffix}"
        stack.enter_context(_refusals(written, size))
        # a converter splits attention into products, whose layout a fused kernel does not have
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        program = trace(graph, model, size)
        about = describe(model, output, int8=False, size=size)
        written.write(program, built, about)
        if written.runs():
            parity = compare(graph, built, written, model, size)
        else:
            assert written.checked is not None
            written.checked(built, about)
            parity = Parity(None, None)
        if calibration is not None:
            assert written.quantize is not None
            exported, built = Exported(program, built), folder / f"int8{written.suffix}"
            images = _images(calibration, model, size)
            written.quantize(exported, built, images, {**about, "int8": True})
            again = _images(calibration, model, size)
            parity = parity._replace(int8=compare_int8(exported.path, built, written, again))
        for source, target in zip(written.files(built)[::-1], targets, strict=True):
            if written.folder:
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)
    return parity


@contextmanager
def _refusals(written: Format, size: tuple[int, int] | None) -> Iterator[None]:
    """Error of a converter in one line."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        cure = "Try another format"
        if size is None:
            cure = "Try --size WIDTHxHEIGHT, for images of one size, or another format"
        reason = error.__cause__ or error  # the cause is more specific than a converter's own error
        raise UserError(
            f"this network cannot be exported for {written.title}: {type(reason).__name__} "
            f"{one_line(str(reason))}; nothing was written. {cure}"
        ) from error


def _images(
    dataset: SegDataset, model: Segmenter, size: tuple[int, int] | None
) -> Iterator[Images]:
    """(1, H, W, 3): one by one, at their own size or the only one that the file takes."""
    color = torch.tensor(model.input.color, dtype=torch.uint8).view(1, 3, 1, 1)
    for index in range(len(dataset)):
        image = image_batch([dataset.read(index).image], "cpu")
        height, width = image.shape[-2:]
        if size is not None:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        elif model.input.fit((height, width)) != (height, width):
            padded = color.expand(1, 3, *model.input.fit((height, width))).clone()
            padded[..., :height, :width] = image
            image = padded
        yield image.permute(0, 2, 3, 1).contiguous().numpy()
