"""A network is printed in one line."""

from __future__ import annotations

from tiny_models import CLASSES
from torch import nn

from aicsd.data import Classes
from aicsd.models import InputSpec, Segmenter


def test_one_line_by_hand() -> None:
    net = nn.Conv2d(3, 3, 1)  # 3 * 3 weights and 3 biases
    names = ", ".join(CLASSES.names)
    text = "Segmenter(custom, 3 classes: {}; 0.00 M parameters; images of any size, uint8 RGB)"
    assert repr(Segmenter(net, CLASSES)) == text.format(names)
    assert "\n" in repr(Segmenter(nn.Sequential(net), CLASSES).net)


def test_many_classes_and_one_size() -> None:
    classes = Classes(tuple("abcdefgh"), ((0, 0, 0),) * 8)
    model = Segmenter(nn.Conv2d(3, 8, 400), classes, InputSpec(size=(32, 64)))
    text = "Segmenter(custom, 8 classes: a, b, c, d, ...; 3.84 M parameters; "
    assert str(model) == text + "images resized to 64x32, uint8 RGB)"
