"""A conversion that is checked, and what it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from convert_sources import HEIGHT, WIDTH, read_ids

from aicsd.data import check_dataset, open_dataset
from aicsd.data.classes_file import read_classes
from aicsd.data.convert import Conversion, convert

Json = dict[str, Any]
SHAPE = (HEIGHT, WIDTH)
TRIANGLE = [(3.2, 2.1), (28.7, 9.4), (11.0, 21.6)]
RNG = np.random.default_rng(0)


def run(source: Path, **options: Any) -> tuple[Conversion, Path]:
    """Convert, and check what every conversion promises."""
    out = source.parent / "out"
    result = convert(source, out, **options)
    for split, count in result.written.images.items():
        assert len(list((out / "images" / split).iterdir())) == count
        if split != "unlabelled":
            data = open_dataset("folder", str(out), split)
            assert list(check_dataset(data, decode_images=True)) == []
            counts = sum(
                np.bincount(data.read(i).mask.ravel(), minlength=256) for i in range(count)
            )
            assert np.array_equal(counts, result.written.pixels[split])
    assert read_classes(out / "classes.txt") == result.classes
    return result, out


def reasons(result: Conversion, kind: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for remark in result.written.remarks:
        if remark.kind == kind:
            found[remark.reason] = found.get(remark.reason, 0) + remark.number
    return found


def names(result: Conversion) -> tuple[str, ...]:
    return result.classes.names


def mask(out: Path, split: str, name: str) -> np.ndarray:
    return read_ids(out / "masks" / split / f"{name}.png")
