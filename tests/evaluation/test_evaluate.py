"""Evaluation: every pixel of every image once, at its own size, however it is batched."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import CLASS_NAMES, TINY_MODEL
from PIL import Image
from started import SERVER
from torch import Tensor, nn

from aicsd.data import Sample, SegDataset, open_dataset
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.evaluation import ImageCounts, evaluate, metrics_from_confusion
from aicsd.evaluation.evaluate import batches_of_equal_size
from aicsd.models import InputSpec, ModelConfig, Segmenter, build_model
from aicsd.types import IGNORE_INDEX

CLASSES = Classes(CLASS_NAMES, ((0, 0, 0), (255, 0, 0), (0, 0, 255)))
SIZES = [(32, 48), (40, 40), (32, 48), (33, 47), (32, 48), (40, 40), (48, 32)]


class Scenes(SegDataset):
    """Random images of mixed sizes whose labels follow their colours roughly."""

    classes = CLASSES

    def __init__(self, sizes: list[tuple[int, int]] = SIZES, broken: int | None = None) -> None:
        self.sizes = sizes
        self.names = [str(number) for number in range(len(sizes))]
        self.broken = broken

    def __len__(self) -> int:
        return len(self.sizes)

    def read(self, index: int) -> Sample:
        if index == self.broken:
            raise UserError(f"sample {index} is broken")
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self.sizes[index], 3), dtype=np.uint8)
        mask = image.argmax(axis=2).astype(np.uint8)
        mask[rng.random(mask.shape) < 0.2] = 1
        mask[rng.random(mask.shape) < 0.1] = IGNORE_INDEX
        return Sample(image, mask)


class Brightest(nn.Module):
    """Predicts the channel that is largest, at a quarter of the size."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4, ceil_mode=True)
        self.classes = classes

    def forward(self, image: Tensor) -> Tensor:
        pooled: Tensor = self.pool(image)
        return pooled.repeat(1, 2, 1, 1)[:, : self.classes]


def brightest() -> Segmenter:
    return Segmenter(Brightest(), CLASSES, InputSpec((0.0,) * 3, (1.0,) * 3))


def deeplab() -> Segmenter:
    torch.manual_seed(0)
    model = build_model(ModelConfig(**TINY_MODEL), CLASSES)
    with torch.no_grad():
        model.net.get_parameter("classifier.weight").mul_(20)
    return model.eval()


def confusion_by_hand(model: Segmenter, dataset: Scenes) -> np.ndarray:
    matrix = np.zeros((3, 3), np.int64)
    for index in range(len(dataset)):
        image, mask, _ = dataset.read(index)
        predicted = model.predict(image)
        for label in range(3):
            for guess in range(3):
                matrix[label, guess] += ((mask == label) & (predicted == guess)).sum()
    return matrix


@pytest.mark.parametrize("make", [brightest, deeplab])
def test_every_labelled_pixel_counts_once(make: Callable[[], Segmenter]) -> None:
    model, dataset = make(), Scenes()
    matrix = confusion_by_hand(model, dataset)
    assert np.count_nonzero(matrix.sum(axis=0)) >= 2
    labelled = sum((dataset.read(index).mask != IGNORE_INDEX).sum() for index in range(7))
    assert matrix.sum() == labelled
    expected = metrics_from_confusion(torch.from_numpy(matrix), CLASS_NAMES, 7)
    assert evaluate(model, dataset).to_dict() == expected.to_dict()


@pytest.mark.parametrize("make", [brightest, deeplab])
def test_batch_size_and_workers_change_the_speed_alone(make: Callable[[], Segmenter]) -> None:
    model, dataset = make(), Scenes()
    expected = evaluate(model, dataset, batch_size=1, workers=0).to_dict()
    for batch_size, workers in ((2, 0), (3, 0), (100, 0), (1, 2), (3, 2)):
        metrics = evaluate(model, dataset, batch_size=batch_size, workers=workers)
        assert metrics.to_dict() == expected


def test_labels_are_scored_at_their_own_size(tmp_path: Path) -> None:
    mask = np.zeros((50, 70), np.uint8)
    mask[::2, ::2] = 1
    for name, array in (("images", np.zeros((50, 70, 3), np.uint8)), ("masks", mask)):
        (tmp_path / name / "val").mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / name / "val" / "0.png")
    (tmp_path / "classes.txt").write_text("ground\ndisc\nbar\n")
    dataset = open_dataset("folder", str(tmp_path), "val")
    metrics = evaluate(brightest(), dataset)
    assert metrics.pixel_accuracy == pytest.approx(1 - (mask == 1).mean())
    assert metrics.per_class_iou["disc"] == 0


def test_ignored_pixels_do_not_count() -> None:
    class Known(Scenes):
        def read(self, index: int) -> Sample:
            image, mask, _ = super().read(index)
            predicted = brightest().predict(image)
            keep = np.random.default_rng(9).random(mask.shape) < 0.5
            return Sample(image, np.where(keep, predicted, IGNORE_INDEX).astype(np.uint8))

    metrics = evaluate(brightest(), Known())
    assert (metrics.miou, metrics.pixel_accuracy, metrics.class_accuracy) == (1.0, 1.0, 1.0)
    assert metrics.images == 7


def test_nothing_labelled_is_nan_and_no_crash() -> None:
    class Unlabelled(Scenes):
        def read(self, index: int) -> Sample:
            sample = super().read(index)
            return sample._replace(mask=np.full_like(sample.mask, IGNORE_INDEX))

    metrics = evaluate(brightest(), Unlabelled()).to_dict()
    assert metrics["miou"] is None
    assert metrics["images"] == 7


@pytest.mark.parametrize("training", [False, True])
def test_evaluation_leaves_the_model_as_it_was(training: bool) -> None:
    model = deeplab()
    expected = evaluate(model, Scenes()).to_dict()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train(training)
    assert evaluate(model, Scenes()).to_dict() == expected
    assert model.training is training
    assert model.net.get_submodule("aspp_dropout").training is training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in model.parameters())


def test_mode_is_restored_after_an_error() -> None:
    model = deeplab().train()
    with pytest.raises(UserError, match="sample 3 is broken"):
        evaluate(model, Scenes(broken=3))
    assert model.training


def test_progress_is_reported_for_every_image() -> None:
    steps: list[int] = []
    evaluate(brightest(), Scenes(), batch_size=2, advance=steps.append)
    assert sum(steps) == 7
    assert max(steps) == 2


@pytest.mark.parametrize(
    "names", [("ground", "disc"), ("disc", "ground", "bar"), ("ground", "disc", "pole")]
)
def test_other_classes_are_refused(names: tuple[str, ...]) -> None:
    model = Segmenter(Brightest(len(names)), Classes(names, ((0, 0, 0),) * len(names)))
    with pytest.raises(UserError) as caught:
        evaluate(model, Scenes())
    assert str(list(names)) in str(caught.value)
    assert str(list(CLASS_NAMES)) in str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 10])
def test_batches_hold_one_size_and_every_sample_once(batch_size: int) -> None:
    dataset = Scenes()
    samples = [dataset.read(index) for index in range(7)]
    batches = list(batches_of_equal_size(iter(enumerate(samples)), batch_size))
    found = {index: sample for batch in batches for index, sample in batch}
    assert sum(map(len, batches)) == 7
    assert all(found[index] is samples[index] for index in range(7))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len({sample.image.shape for _, sample in batch}) == 1
    assert len(batches) == {1: 7, 2: 5, 3: 4, 10: 4}[batch_size]


def share_of_rank(rank: int, store: str) -> tuple[dict[str, Any], np.ndarray]:
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    counts = ImageCounts(Scenes().names, 3)
    try:
        found = evaluate(
            brightest(), Scenes(), batch_size=2, boundary=True, calibration=True, per_image=counts
        )
        return found.to_dict(), counts.matrices()
    finally:
        dist.destroy_process_group()


def test_two_processes_share_the_images_and_both_know_the_result(tmp_path: Path) -> None:
    alone = ImageCounts(Scenes().names, 3)
    wanted = evaluate(
        brightest(), Scenes(), boundary=True, calibration=True, per_image=alone
    ).to_dict()
    store = f"file://{tmp_path}/store"
    with ProcessPoolExecutor(2, SERVER) as pool:
        for metrics, matrices in pool.map(share_of_rank, range(2), [store] * 2):
            for key in ("confidence", "calibration_error"):  # sums of fractions, in another order
                assert metrics.pop(key) == pytest.approx(wanted[key])
            assert metrics == {key: wanted[key] for key in metrics}
            assert metrics.keys() | {"confidence", "calibration_error"} == wanted.keys()
            assert np.array_equal(matrices, alone.matrices())
