"""Tables of colours as people write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import one_line
from convert_sources import HEIGHT, WIDTH, photo, read_ids, save_ids

from aicsd.data.convert import convert
from aicsd.data.convert.colors import parse_table


@pytest.mark.parametrize(
    "text",
    [
        "name,r,g,b\nred car,200,0,0\nsky,0,0,250\n",
        "red car 200 0 0\nsky 0 0 250",
        "200 0 0\tred car\r\n0 0 250\tsky\r\n",
        "# label:color_rgb:parts:actions\nred car:200,0,0::\nsky:0,0,250::\n",
        "red car;200;0;0\nsky;0;0;250",
        "Name, R, G, B\nred car, 200, 0, 0\nsky, 0, 0, 250",
        "red car,200,0,0\nvoid,1,1,1\nsky,0,0,250",
    ],
)
def test_tables_as_people_write_them(text: str) -> None:
    table = parse_table(text, "t.csv", {"void"})
    assert table.names == ("red car", "sky")
    assert table.palette() == [(200, 0, 0), (0, 0, 250)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,0,0,256", "beyond 255"),
        ("a,0,0,1\nb,0,0,1", "two classes"),
        ("a,0,0,1\nb", "others none"),
    ],
)
def test_tables_that_cannot_be(text: str, words: str) -> None:
    message = one_line(lambda: parse_table(text, "t.csv"))
    assert "t.csv" in message
    assert words in message


def test_several_colours_of_one_class(tmp_path: Path) -> None:
    table = parse_table("a,1,1,1\nb,2,2,2\na,3,3,3\n", "t")
    assert table.names == ("a", "b")
    assert table.colors == (((1, 1, 1), 0), ((2, 2, 2), 1), ((3, 3, 3), 0))


def test_an_ignored_name_keeps_its_number(tmp_path: Path) -> None:
    photo(tmp_path / "s" / "images" / "a.png")
    ids = np.random.default_rng(0).integers(0, 3, (HEIGHT, WIDTH))
    save_ids(tmp_path / "s" / "masks" / "a.png", ids)
    (tmp_path / "s" / "classes.txt").write_text("road\nignore\nsky\n")
    assert convert(tmp_path / "s", tmp_path / "o").classes.names == ("road", "sky")
    written = read_ids(tmp_path / "o" / "masks" / "train" / "a.png")
    assert np.array_equal(written, np.array([0, 255, 1])[ids])
