"""Scales, mirroring and windows: laws that must hold, and the released resizing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import RunCli
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_runs import NO_REPORT
from torch import Tensor, nn

from aicsd.data import Sample, SegDataset
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.evaluation import InferenceConfig, evaluate, infer, short_side_of
from aicsd.evaluation.evaluate import resize_short_side
from aicsd.models import Segmenter
from aicsd.models.inference import predict_ids, window_starts

CLASSES = Classes(("a", "b", "c"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))


def pointwise() -> Segmenter:
    """Each pixel by itself: cutting and mirroring cannot change its prediction."""
    torch.manual_seed(0)
    return Segmenter(nn.Conv2d(3, 3, 1), CLASSES, align_corners=True).eval()


def looking_around() -> Segmenter:
    """A strided network whose prediction depends on the surroundings."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.Tanh(), nn.Conv2d(8, 3, 3))
    return Segmenter(net, CLASSES, align_corners=True).eval()


def images(height: int = 60, width: int = 90, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    small = torch.randint(0, 256, (count, 3, 9, 11), generator=generator).float()
    return F.interpolate(small, size=(height, width), mode="bilinear").to(torch.uint8)


def plain(model: Segmenter, batch: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(batch).logits
    size = batch.shape[-2:]
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True).argmax(dim=1)


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(scales=(1.0,)),
        InferenceConfig(window=90),
        InferenceConfig(window=500, overlap=0.5),
    ],
)
def test_what_changes_nothing_changes_nothing(config: InferenceConfig) -> None:
    assert torch.equal(infer(looking_around(), images(), config), plain(looking_around(), images()))


@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(flip=True),
        InferenceConfig(window=32),
        InferenceConfig(window=40, overlap=0.0),
        InferenceConfig(window=33, overlap=0.7, flip=True),
    ],
)
def test_a_pointwise_network_is_indifferent_to_windows_and_mirrors(config: InferenceConfig) -> None:
    assert torch.equal(infer(pointwise(), images(), config), plain(pointwise(), images()))


def test_scales_and_mirrors_are_averaged_as_probabilities() -> None:
    model, batch = looking_around(), images()
    total = torch.zeros(2, 3, 60, 90, dtype=torch.float64)
    for size in ((45, 68), (60, 90), (90, 135)):
        view = F.interpolate(batch.float(), size=size, mode="bilinear", align_corners=True)
        for mirrored in (False, True):
            with torch.no_grad():
                logits = model(view.flip(3) if mirrored else view).logits
            maps = F.interpolate(logits, size=size, mode="bilinear", align_corners=True).softmax(1)
            maps = maps.flip(3) if mirrored else maps
            total += F.interpolate(maps, size=(60, 90), mode="bilinear", align_corners=True)
    found = infer(model, batch, InferenceConfig(scales=(0.75, 1.0, 1.5), flip=True))
    assert (found == total.argmax(dim=1)).float().mean() > 0.999


def test_windows_are_averaged_as_probabilities() -> None:
    model, batch = looking_around(), images(40, 100)
    total, count = torch.zeros(2, 3, 40, 100), torch.zeros(100)
    for left in (0, 20, 40, 60):
        with torch.no_grad():
            logits = model(batch[..., left : left + 40]).logits
        maps = F.interpolate(logits, size=(40, 40), mode="bilinear", align_corners=True)
        total[..., left : left + 40] += maps.softmax(dim=1)
        count[left : left + 40] += 1
    found = infer(model, batch, InferenceConfig(window=40, overlap=0.5))
    assert (found == (total / count).argmax(dim=1)).float().mean() > 0.999


def test_released_protocol_means_513_pixels() -> None:
    assert short_side_of("standard", None) == 0
    assert short_side_of("released", None) == 513
    assert short_side_of("released", 40) == short_side_of("standard", 40) == 40
    for asked in (0, -3):
        with pytest.raises(UserError, match="1 or more"):
            short_side_of("released", asked)
    with pytest.raises(UserError, match="0 or more"):
        evaluate(looking_around(), Scenes(), short_side=-1)


def test_windows_of_one_image_know_nothing_of_the_batch() -> None:
    """Bit for bit, for the network sees the same tensors however many images come together."""
    model, batch = looking_around(), images(70, 100, count=3)
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    config = InferenceConfig(scales=(0.4, 1.0), window=40)
    together, passes = infer(model, batch, config), list(seen)
    assert max(shape[0] for shape in passes) == 4
    assert {shape[2:] for shape in passes} == {(32, 40), (40, 40)}
    seen.clear()
    alone = torch.cat([infer(model, batch[n : n + 1], config) for n in range(3)])
    assert torch.equal(together, alone)
    assert seen == passes


@pytest.mark.parametrize("options", [{}, {"window": 32}, {"scales": (0.75, 1.0), "flip": True}])
def test_batch_size_and_workers_do_not_change_the_result(options: dict[str, Any]) -> None:
    class Mixed(Scenes):
        sizes = ((40, 60), (50, 50), (40, 60))

    settings: dict[str, Any] = {"inference": InferenceConfig(**options), "boundary": True}
    expected = evaluate(looking_around(), Mixed(), batch_size=1, **settings)
    for batch_size, workers in ((2, 0), (100, 0), (3, 2)):
        found = evaluate(
            looking_around(), Mixed(), batch_size=batch_size, workers=workers, **settings
        )
        assert found == expected


@pytest.mark.parametrize("training", [False, True])
def test_prediction_leaves_the_mode_as_it_was(training: bool) -> None:
    model = looking_around().train(training)
    predict_ids(model, images()[0].permute(1, 2, 0).numpy())
    assert model.training is training


def test_every_image_by_itself_gives_what_the_batch_gives() -> None:
    config = InferenceConfig(scales=(0.75, 1.0), flip=True, window=40)
    model, batch = looking_around(), images(50, 70, count=3)
    together = infer(model, batch, config)
    for number in range(3):
        alone = infer(model, batch[number : number + 1], config)
        assert (together[number] == alone[0]).float().mean() > 0.999
        image = batch[number].permute(1, 2, 0).numpy()
        assert np.array_equal(predict_ids(model, image, config), alone[0].numpy())


@given(length=st.integers(1, 400), window=st.integers(1, 400), overlap=st.floats(0, 0.95))
def test_windows_cover_everything_and_stay_inside(length: int, window: int, overlap: float) -> None:
    window = min(window, length)
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - window
    largest_step = max(1, int(window * (1 - overlap)))
    for before, after in pairwise(starts):
        assert 0 < after - before <= min(window, largest_step + 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "above 0"),
        ({"scales": (75.0, 100.0)}, "at most 10"),
        ({"scales": (float("inf"),)}, "at most 10"),
        ({"scales": (1.0, float("nan"))}, "above 0"),
        ({"window": 20}, "32 or more"),
        ({"window": -1}, "32 or more"),
        ({"overlap": 1.0}, "below 1"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InferenceConfig(**values)


class Scenes(SegDataset):
    """Three images of mixed sizes."""

    classes = CLASSES
    sizes = ((40, 60), (60, 40), (50, 50))

    def __init__(self, short_side: int = 0) -> None:
        self.names = ["0", "1", "2"]
        self.short_side = short_side

    def __len__(self) -> int:
        return 3

    def read(self, index: int) -> Sample:
        height, width = self.sizes[index]
        image = images(height, width, count=1)[0].permute(1, 2, 0).numpy().copy()
        mask = image.argmax(axis=2).astype(np.uint8)
        mask[:3] = 255
        if self.short_side:
            scale = self.short_side / min(height, width)
            size = (int(width * scale + 1e-9), int(height * scale + 1e-9))
            image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
            mask = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        return Sample(image, mask)


def test_short_side_scores_resized_images_and_labels() -> None:
    model = looking_around()
    resized = evaluate(model, Scenes(), short_side=33)
    assert resized == evaluate(model, Scenes(short_side=33))
    assert resized != evaluate(model, Scenes())


@pytest.mark.parametrize(
    ("size", "expected"), [((40, 60), (33, 49)), ((60, 40), (49, 33)), ((50, 50), (33, 33))]
)
def test_short_side_keeps_the_aspect(size: tuple[int, int], expected: tuple[int, int]) -> None:
    sample = Sample(np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8))
    image, mask, _ = resize_short_side(sample, 33)
    assert image.shape == (*expected, 3)
    assert mask.shape == expected


def test_options_of_the_command_line(tiny_folder: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    model = ("--model.backbone", "test_resnet", "--model.aspp_channels", 8,
             "--model.decoder_channels", 8)  # fmt: skip
    on_data = ("--data.name", "folder", "--data.root", tiny_folder)
    code, _, error = run_cli(
        "train", *model, *on_data, "--run", run, "--epochs", 1, "--data.batch_size", 4,
        "--data.augment.crop", 48, "--data.workers", 0, *NO_REPORT,
    )  # fmt: skip
    assert code == 0, error
    results: list[dict[str, Any]] = []
    settings: tuple[tuple[object, ...], ...] = (
        (),
        ("--scales", "[0.75,1.0,1.25]", "--flip", "true", "--window", 32, "--boundary", "true"),
        ("--protocol", "released", "--short_side", 40),
        # other spellings of the last two
        ("--scales", "0.75,1.0,1.25", "--flip", "true", "--window", 32, "--boundary", "true"),
        ("--scales=0.75,1.0,1.25", "--flip", "true", "--window", 32, "--boundary", "true"),
        ("--short_side", 40),
    )
    for options in settings:
        out = tmp_path / f"{len(results)}.json"
        code, printed, error = run_cli("evaluate", run, *on_data, "--json", out, *options)
        assert code == 0, error
        assert ("boundary IoU" in printed) == ("--boundary" in options)
        results.append(json.loads(out.read_text()))
    assert "boundary_iou" not in results[0]
    assert results[1]["boundary_iou"] == pytest.approx(
        np.nanmean([v for v in results[1]["per_class_boundary_iou"].values() if v is not None])
    )
    assert len({result["pixel_accuracy"] for result in results[:3]}) == 3
    assert results[3] == results[4] == results[1]
    assert results[5] == results[2]
    refused: tuple[tuple[tuple[object, ...], str], ...] = (
        (("--scales", "[0]"), "above 0"),
        (("--scales", "75,100"), "at most 10"),
        (("--scales", "1.0,big"), "scales is 'big'; it must be a number"),
        (("--protocol", "released", "--short_side", 0), "short_side is 0; it must be 1 or more"),
        (("--short_side", -3), "short_side is -3; it must be 1 or more"),
    )
    for options, words in refused:
        code, _, error = run_cli("evaluate", run, *on_data, *options)
        assert code == 2
        assert words in error
        assert error.count("\n") == 1
    photo = next((tiny_folder / "images" / "val").iterdir())
    code, _, error = run_cli("predict", run, photo, "--out", tmp_path / "p", "--flip", "true")
    assert code == 0, error
