"""A network with its classes: labels of any image, and its parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_segmenters import CLASSES, build, random_image
from torch import nn

from aicsd.errors import UserError
from aicsd.models import Segmenter


@pytest.mark.parametrize("size", [(64, 64), (33, 47), (50, 17), (16, 90)])
def test_predict_gives_an_id_for_every_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    model = build()
    image = random_image(*size)
    ids = model.predict(image)
    assert ids.shape == size
    assert ids.dtype == np.uint8
    assert ids.max() < 3
    with torch.no_grad():
        scores = model.eval()(torch.from_numpy(image).permute(2, 0, 1)[None]).logits
    full = nn.functional.interpolate(scores, size=size, mode="bilinear", align_corners=True)
    assert np.array_equal(ids, full.argmax(1)[0].numpy())
    Image.fromarray(image).save(tmp_path / "i.png")
    assert np.array_equal(model.predict(tmp_path / "i.png"), ids)
    assert np.array_equal(model.predict(str(tmp_path / "i.png")), ids)


@pytest.mark.parametrize("training", [False, True])
def test_predict_is_in_evaluation_mode_and_restores_the_mode(training: bool) -> None:
    model = build().train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    ids = model.predict(random_image())
    assert np.array_equal(model.predict(random_image()), ids)
    assert model.training is training
    assert model.net.get_submodule("aspp_dropout").training is training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_predict_reads_any_memory_layout() -> None:
    model = build()
    image = random_image()
    view = image[:, ::-1]
    assert np.array_equal(model.predict(view), model.predict(np.ascontiguousarray(view)))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.int64),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
)
def test_predict_refuses_anything_else(image: np.ndarray) -> None:
    with pytest.raises(UserError, match=r"\(H, W, 3\) uint8") as caught:
        build().predict(image)
    assert str(image.shape) in str(caught.value)
    assert str(image.dtype) in str(caught.value)


def test_predict_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image at .*nowhere\.png"):
        build().predict(tmp_path / "nowhere.png")


def test_segmenter_counts_and_splits_its_parameters() -> None:
    model = build()
    every = list(model.parameters())
    backbone = model.backbone_parameters()
    assert model.num_parameters() == sum(p.numel() for p in every)
    assert {id(p) for p in backbone} < {id(p) for p in every}
    assert len(backbone) == len(list(model.net.get_submodule("backbone").parameters())) > 0
    assert Segmenter(nn.Conv2d(3, 3, 1), CLASSES).backbone_parameters() == []
