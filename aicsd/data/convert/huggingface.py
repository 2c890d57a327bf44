"""Hugging Face data sets: parquet files, or folders that ``save_to_disk`` wrote.

Read by pyarrow, with which ``datasets`` itself stores them: no copy in a cache, no network, and no
path that a row holds is opened.
"""

from __future__ import annotations

import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from aicsd.data.convert.colors import ClassTable, ColorReader, parse_table
from aicsd.data.convert.picture import draw_colors, ids_in, kind_of, map_ids
from aicsd.data.convert.source import (
    IGNORED_WORDS,
    Format,
    Frame,
    Item,
    LeftOutError,
    Remark,
    Settings,
    Source,
    clean_name,
    make_classes,
)
from aicsd.data.convert.tree import Tree, folder_of, split_of
from aicsd.data.convert.values import integer, record, records, string
from aicsd.errors import UserError, one_line
from aicsd.extras import require
from aicsd.images import UInt8Array

STATE = "state.json"
"""Names the data files in a folder of ``save_to_disk``."""
ID_NAMES = "id2label.json"
CLASSES = "classes.txt"
IMAGE_NAMES = ("image", "pixel_values", "img", "photo")
MASK_WORDS = ("mask", "label", "annotation", "segmentation", "target", "gt")
MAX_GROUP = 16 << 30
"""Bytes of the rows that a parquet file keeps together; they are decompressed at once."""


def recognise(tree: Tree) -> bool:
    """Whether there are parquet files, or Arrow files beside their state."""
    arrow = {folder_of(file) for file in tree.with_suffix(".arrow")}
    states = {folder_of(file) for file in tree.by_base.get(STATE, [])}
    return bool(tree.with_suffix(".parquet") or arrow & states)


def _saved(tree: Tree) -> list[str]:
    """Arrow files that states name."""
    found = []
    for state in tree.by_base.get(STATE, []):
        beside = [f for f in tree.with_suffix(".arrow") if folder_of(f) == folder_of(state)]
        named = records(tree.json(state), "_data_files") if beside else []
        names = {string(entry.get("filename")) for entry in named}
        found += [file for file in beside if file.rpartition("/")[2] in names]
    return found


class Group(NamedTuple):
    """Rows that are read together."""

    file: str
    number: int
    rows: int


class Reader:
    """Reads groups of rows; keeps the last two, since rows are read in order."""

    def __init__(self, tree: Tree, columns: list[str]) -> None:
        self._tree, self._columns = tree, columns
        self._lock = threading.Lock()
        self._kept: dict[Group, Any] = {}

    def cell(self, group: Group, row: int, column: str) -> bytes | None:
        """Bytes of one image or mask; None if the row has none."""
        with self._lock:
            if group not in self._kept:
                if len(self._kept) > 1:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[group] = self._read(group)
            table = self._kept[group]
        value = table.column(column)[row].as_py()
        held = value.get("bytes") if isinstance(value, dict) else value
        return held if isinstance(held, bytes) else None

    def _read(self, group: Group) -> Any:
        pyarrow, parquet = require_pyarrow()
        path = self._tree.path(group.file)
        try:
            if path.suffix.lower() != ".parquet":
                return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
            file = parquet.ParquetFile(path)
            if file.metadata.row_group(group.number).total_byte_size > MAX_GROUP:
                raise LeftOutError("a group of rows of absurd size", group.file)
            return file.read_row_group(group.number, columns=self._columns)
        except (pyarrow.ArrowException, OSError) as error:
            raise LeftOutError("a data file that cannot be read", group.file) from error


def require_pyarrow() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``."""
    need = "huggingface needs pyarrow"
    return tuple(require(name, "convert", need) for name in ("pyarrow", "pyarrow.parquet"))


def read(tree: Tree, settings: Settings) -> Source:
    """Every row of every data file."""
    require_pyarrow()
    files = tree.with_suffix(".parquet") or _saved(tree)
    if not files:
        raise UserError(f"no parquet files, and no {STATE} that names Arrow files, in {tree.root}")
    image, mask = _columns(tree, files[0])
    table, ids = _classes(tree, settings.table)
    colors = ColorReader(table.colors) if table.colors else None
    reader = Reader(tree, [image, mask])
    items: list[Item] = []
    counts: dict[str, int] = defaultdict(int)
    for file in files:
        split = split_of(file)
        for group in _groups(tree, file, {image, mask}):
            for row in range(group.rows):
                prefix = split or "row"
                name = f"{prefix}_{counts[prefix]:06}"
                counts[prefix] += 1
                held = partial(_image, reader, group, row, image)
                draw = partial(_draw, reader, group, row, mask, ids, colors)
                items.append(Item(name, split, held, draw))
    return Source(make_classes(table.names, table.palette()), items, [])


def _schema(tree: Tree, file: str) -> tuple[Any, list[int]]:
    """Schema of a data file, and the rows of its groups."""
    pyarrow, parquet = require_pyarrow()
    path = tree.path(file)
    try:
        if path.suffix.lower() == ".parquet":
            data = parquet.read_metadata(path)
            groups = [data.row_group(number).num_rows for number in range(data.num_row_groups)]
            return data.schema.to_arrow_schema(), groups
        stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        return stream.schema, [sum(batch.num_rows for batch in stream)]
    except (pyarrow.ArrowException, OSError) as error:
        reason = one_line(error)
        raise UserError(f"{path} is not a complete data file: {reason}") from error


def _groups(tree: Tree, file: str, columns: set[str]) -> Iterator[Group]:
    schema, rows = _schema(tree, file)
    if not columns <= set(schema.names):
        raise UserError(f"{tree.root / file} lacks one of the columns {sorted(columns)}")
    yield from (Group(file, number, count) for number, count in enumerate(rows))


def _columns(tree: Tree, file: str) -> tuple[str, str]:
    """Names of the columns of images and of masks."""
    pyarrow, _ = require_pyarrow()
    types = pyarrow.types
    schema, _ = _schema(tree, file)

    def is_picture(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" for field in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = [field.name for field in schema if is_picture(field.type)]
    masks = [name for name in found if any(word in name.lower() for word in MASK_WORDS)]
    images = [name for name in found if name not in masks]
    images = [name for name in images if name in IMAGE_NAMES][:1] or images
    masks = [name for name in masks if name in MASK_WORDS][:1] or masks
    if len(images) == len(masks) == 1:
        return images[0], masks[0]
    raise UserError(
        f"{tree.root / file}: the columns of images and masks are not clear (columns with "
        f"pictures: {', '.join(found) or 'none'}); name them image and mask (Dataset.rename_column)"
    )


def _classes(tree: Tree, table: ClassTable | None) -> tuple[ClassTable, dict[int, int]]:
    """Classes, and their id by the id in the masks."""
    if table is None and ID_NAMES in tree.by_base:
        content = record(tree.json(min(tree.by_base[ID_NAMES])))
        named = {integer(number): string(name) for number, name in content.items()}
        pairs = sorted(
            (number, clean_name(name))
            for number, name in named.items()
            if number is not None and name is not None
        )
        kept = [(number, name) for number, name in pairs if name not in IGNORED_WORDS]
        names = tuple(dict.fromkeys(name for _, name in kept))
        return ClassTable(names, (), ()), {number: names.index(name) for number, name in kept}
    if table is None and CLASSES in tree.by_base:
        file = min(tree.by_base[CLASSES])
        table = parse_table(tree.text(file), str(tree.root / file), IGNORED_WORDS)
    if table is None:
        raise UserError(
            f"no names of classes in {tree.root}: give --classes FILE (one name a line, in the "
            f"order of the ids), or put {ID_NAMES} or {CLASSES} beside the data"
        )
    return table, dict(enumerate(table.ids))


def _image(reader: Reader, group: Group, row: int, column: str) -> bytes:
    held = reader.cell(group, row, column)
    if held is None:
        raise LeftOutError("the row holds no bytes of an image", f"{group.file}, row {row}")
    return held


def _draw(
    reader: Reader,
    group: Group,
    row: int,
    column: str,
    ids: dict[int, int],
    colors: ColorReader | None,
    frame: Frame,  # noqa: ARG001
    remarks: list[Remark],
) -> UInt8Array | None:
    where = f"{group.file}, row {row}"
    held = reader.cell(group, row, column)
    if held is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        file.write(held)
        file.flush()
        mask = Path(file.name)
        if kind_of(mask, where) != "colors":
            return map_ids(ids_in(mask, where), ids, where, remarks)
        if colors is None:
            raise LeftOutError("a mask of colours; give --classes with colours", where)
        return draw_colors(mask, colors, where, remarks)


FORMAT = Format(
    "huggingface", "*.parquet, or state.json and *.arrow", recognise, read, takes_table=True
)
