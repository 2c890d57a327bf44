"""The formats, and the conversion of an export. A new format is a file and a line here."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image as PILImage

from aicsd.data.convert import (
    ade20k,
    coco,
    huggingface,
    labelme,
    masks,
    panoptic,
    roboflow,
    voc,
    yolo,
)
from aicsd.data.convert.colors import ClassTable, parse_table
from aicsd.data.convert.report import LEFT_OUT_FILE, Conversion, left_out_lines, printable, summary
from aicsd.data.convert.source import IGNORED_WORDS, Format, Remark, Settings
from aicsd.data.convert.tree import Tree
from aicsd.data.convert.write import Empty, Written, write
from aicsd.errors import UserError, suggest
from aicsd.files import atomic_folder
from aicsd.types import IGNORE_INDEX

MAX_TABLE = 1 << 20
FORMATS: tuple[Format, ...] = (
    coco.FORMAT,
    panoptic.FORMAT,
    yolo.FORMAT,
    voc.CVAT,
    voc.FORMAT,
    labelme.FORMAT,
    roboflow.FORMAT,
    ade20k.FORMAT,
    huggingface.FORMAT,
    masks.FORMAT,
)


def convert(
    source: Path,
    out: Path,
    *,
    format: str | None = None,
    val: float = 0.1,
    seed: int = 0,
    classes: Path | None = None,
    background: bool = True,
    empty: Empty = "unlabelled",
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write the images and masks of ``source`` to ``out`` in the layout of the dataset ``folder``.

    Images are copied byte for byte, masks become 8-bit palette PNGs.

    Args:
        source: folder with what an annotation tool exported.
        out: new folder; it is whole in the end, or not there.
        format: the name of one of ``FORMATS``; None: it is recognised from the files.
        val: part of the images that becomes the split val, in [0, 1), where the source has none.
        seed: seed of the choice of these images.
        classes: table of class names and colours, for formats whose files do not give them.
        background: pixels outside all objects are a class; False: they are ignored.
        empty: use of images without annotation: the split ``unlabelled``, an image of
            background, or left_out.
        progress: called with the images done and in all.

    Raises:
        UserError: a format that is not recognised, annotations that cannot be read, nothing that
            can be used, or a folder that is there already.
    """
    with _printable():
        return _convert(source, out, format, val, seed, classes, background, empty, progress)


@contextmanager
def _printable() -> Iterator[None]:
    """File names may hold line breaks; messages may not."""
    try:
        yield
    except UserError as error:
        raise UserError(printable(str(error))) from error


def _convert(
    source: Path,
    out: Path,
    format: str | None,
    val: float,
    seed: int,
    classes: Path | None,
    background: bool,
    empty: Empty,
    progress: Callable[[int, int], None] | None,
) -> Conversion:
    _check_out(source, out)
    if not 0 <= val < 1:
        raise UserError(f"val is {val}; it must be from 0 to below 1")
    tree = Tree(source)
    chosen = _named(format) if format is not None else recognise(tree)
    table = None
    if classes is not None:
        if not chosen.takes_table:
            takers = ", ".join(known.name for known in FORMATS if known.takes_table)
            raise UserError(f"classes is for {takers}; {chosen.name} names its classes itself")
        table = read_table(classes)
    if not chosen.objects and not background:
        raise UserError(f"background false is for formats of objects; {chosen.name} is none")
    with warnings.catch_warnings():  # sizes are bounded by a limit of ours
        warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
        found = chosen.read(tree, Settings(background, table))
        if not found.items and not found.remarks:
            raise UserError(f"no image of {chosen.name} in {source}; looked for {chosen.files}")
        if empty == "background" and found.background is None:
            raise UserError(
                "empty background needs a class for the background, which "
                + ("background false takes away" if chosen.objects else f"{chosen.name} has not")
            )
        found.remarks.extend(Remark("file", "a link, not followed", name) for name in tree.links)
        with atomic_folder(out) as folder:
            written = write(found, folder, val, seed, empty, progress)
            _require_labels(source, chosen, written)
            lines = left_out_lines(written.remarks)
            if lines:
                text = "\n".join(lines) + "\n"
                (folder / LEFT_OUT_FILE).write_text(text, encoding="utf-8")
    return Conversion(chosen.name, out, found.classes, written)


def recognise(tree: Tree) -> Format:
    """The one format whose files are there; a special one counts before a general one.

    Raises:
        UserError: none, or several.
    """
    found = [known for known in FORMATS if known.recognise(tree)]
    found = [known for known in found if not known.general] or found
    if len(found) == 1:
        return found[0]
    listed = "; ".join(f"{known.name} ({known.files})" for known in found or FORMATS)
    if found:
        raise UserError(f"{tree.root} may be {listed}: give --format NAME")
    raise UserError(f"{tree.root} has no known format; looked for {listed}")


def read_table(path: Path) -> ClassTable:
    """A table of class names and colours that the user gives."""
    try:
        if path.stat().st_size > MAX_TABLE:
            raise UserError(f"{path} is larger than {MAX_TABLE >> 20} MiB, no table of classes")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"classes: cannot read {path}: {error}") from error
    table = parse_table(text, str(path), IGNORED_WORDS)
    if not table.names:
        raise UserError(f"classes: {path} names no class")
    return table


def _named(name: str) -> Format:
    names = {known.name: known for known in FORMATS}
    if name not in names:
        raise UserError(f"unknown format {name!r}{suggest(name, names)}")
    return names[name]


def _check_out(source: Path, out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise UserError(f"out: {out} is there already; give another folder or remove it")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"out: {out} lies in the source {source}; give a folder outside of it")


def _require_labels(source: Path, chosen: Format, written: Written) -> None:
    labelled = sum(int(pixels[:IGNORE_INDEX].sum()) for pixels in written.pixels.values())
    if labelled:
        return
    reasons = " | ".join(" ".join(block.split()) for block in summary(written.remarks)[:3])
    raise UserError(
        f"nothing of {source} can be used: no pixel of a class ({chosen.name}). "
        f"{reasons or 'no image has an annotation'}"
    )
