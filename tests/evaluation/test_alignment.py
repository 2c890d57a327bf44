"""A network that sees the images in the right way fits the labels best that way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, RunCli, write_folder
from torch import Tensor, nn

from aicsd.data import open_dataset
from aicsd.data.protocol import Classes, Sample, SegDataset
from aicsd.errors import UserError
from aicsd.evaluation.alignment import (
    AS_IT_IS,
    CROPS,
    NORMALIZATIONS,
    SWAPPED,
    alignment,
    misalignment,
)
from aicsd.models import InputSpec, Segmenter, save_model

CLASSES = Classes(CLASS_NAMES, ((0, 0, 0), (200, 0, 0), (0, 0, 200)))


class ByColor(nn.Module):
    """Knows the red discs and blue bars of the tiny folder, moved by some pixels."""

    def __init__(self, down: int = 0, right: int = 0, swapped: bool = False) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.move, self.swapped = (down, right), swapped

    def forward(self, image: Tensor) -> Tensor:
        image = image.flip(1) if self.swapped else image
        red, _, blue = image.unbind(1)
        logits = torch.stack([torch.full_like(red, 0.5), red - blue, blue - red], dim=1)
        return logits.roll(self.move, (2, 3)) + self.unused


def network(**changes: Any) -> Segmenter:
    return Segmenter(ByColor(**changes), CLASSES, InputSpec((0.0,) * 3, (1.0,) * 3)).eval()


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> SegDataset:
    place = write_folder(tmp_path_factory.mktemp("alignment") / "data", {"train": 1, "val": 5})
    return open_dataset("folder", str(place), "val")


def test_the_right_way_fits_best(val: SegDataset) -> None:
    variants = alignment(network(), val, crop=48)
    scores = {variant.name: variant.miou for variant in variants}
    assert len(scores) == 13
    assert scores[AS_IT_IS] == 1.0
    assert scores[CROPS] > 0.8
    wrong = [variant.miou for variant in variants if variant.is_wrong]
    assert len(wrong) == 11
    others = [variant for variant in variants if variant.name not in NORMALIZATIONS]
    assert max(variant.miou for variant in others if variant.is_wrong) < 1.0
    assert misalignment(variants) is None


@pytest.mark.parametrize(
    ("down", "right", "cure"),
    [(1, 0, "up by 1"), (-2, 0, "down by 2"), (0, 2, "left by 2"), (0, -1, "right by 1")],
)
def test_a_network_that_is_some_pixels_off(
    down: int, right: int, cure: str, val: SegDataset
) -> None:
    variants = alignment(network(down=down, right=right), val, crop=48)
    line = misalignment(variants)
    assert line is not None
    assert f"moved {cure} fits better than as it is (1.0000, " in line


def test_channels_in_another_order(val: SegDataset) -> None:
    variants = alignment(network(swapped=True), val, crop=48)
    assert {v.name: v.miou for v in variants}[SWAPPED] == 1.0
    assert "with channels swapped (BGR) the network" in (misalignment(variants) or "")


def test_another_normalization(val: SegDataset) -> None:
    """Divided by 5, no difference of red and blue reaches the logit of the ground."""
    wrong = network().with_input(InputSpec((0.0,) * 3, (5.0,) * 3)).eval()
    variants = alignment(wrong, val, crop=48)
    scores = {variant.name: variant.miou for variant in variants}
    assert scores.keys() >= NORMALIZATIONS.keys()
    assert scores["pixels of 0 to 1"] == 1.0
    line = misalignment(variants, 0.005) or ""
    assert "the network scores better (1.0000, " in line
    assert line.endswith("is its normalisation right?")
    assert misalignment(variants, 1.0) is None
    raw = network().with_input(InputSpec((0.0,) * 3, (1.0,) * 3, scale=1.0)).eval()
    assert len(alignment(raw, val, crop=48)) == 11


def test_data_that_cannot_be_looked_at(val: SegDataset) -> None:
    class Small(SegDataset):
        classes = CLASSES

        def __init__(self) -> None:
            self.names = ["a"]

        def __len__(self) -> int:
            return 1

        def read(self, index: int) -> Sample:
            return Sample(np.zeros((8, 20, 3), np.uint8), np.zeros((8, 20), np.uint8))

    with pytest.raises(UserError, match="a: 20x8 is too small to be moved"):
        alignment(network(), Small())
    with pytest.raises(UserError, match="needs 1 image with labels or more"):
        alignment(network(), val, images=0)


def test_the_command(tmp_path: Path, run_cli: RunCli) -> None:
    from tiny_models import save_tiny_model

    root = write_folder(tmp_path / "data", {"train": 2, "val": 2})
    teacher = save_tiny_model(tmp_path / "t.safetensors")
    flags = ("--data.name", "folder", "--data.root", root, "--teacher", teacher, "--crop", "32")
    code, printed, error = run_cli("data", "check", *flags)
    assert code == 0, error
    lines = printed.splitlines()
    start = lines.index("teacher on val, mIoU %:")
    assert [line.split()[0] for line in lines[start + 1 : start + 3]] == ["as", "moved"]
    assert len(lines) - start == 14
    save_model(network(), tmp_path / "own.safetensors")
    code, _, error = run_cli(
        "data", "check", *flags[:-4], "--teacher", tmp_path / "own.safetensors"
    )
    assert (code, "network of your own" in error) == (2, True)
