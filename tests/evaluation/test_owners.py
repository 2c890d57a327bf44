"""The same figures as the tools of the datasets' owners."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import RunCli
from PIL import Image
from test_submission import save_random

from aicsd.data import cityscapes, open_dataset, voc
from aicsd.evaluation import evaluate
from aicsd.models import load_model


def test_cityscapes_scripts(tmp_path: Path, run_cli: RunCli) -> None:
    scripts = pytest.importorskip(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
        reason="the package cityscapesscripts is not installed",
    )
    rng = np.random.default_rng(0)
    root, truths = tmp_path / "cityscapes", []
    for number in range(3):
        name = f"bonn_00000{number}_000019"
        image = root / "leftImg8bit" / "val" / "bonn" / f"{name}_leftImg8bit.png"
        truth = root / "gtFine" / "val" / "bonn" / f"{name}_gtFine_labelIds.png"
        for path in (image, truth):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (48, 96, 3), dtype=np.uint8)).save(image)
        # every label id of the set, ignored ones too, but no 33: a class that is never labelled
        ids = rng.integers(0, 33, (6, 12)).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(ids.astype(np.uint8)).save(truth)
        truths.append(str(truth))
    model = save_random(cityscapes.CLASSES, tmp_path / "m.safetensors")
    on_data = ("--data.name", "cityscapes", "--data.root", root, "--data.split", "val")
    assert run_cli("submit", model, *on_data, "-o", tmp_path / "p.zip")[0] == 0
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        archive.extractall(tmp_path / "predictions")
    scripts.args.predictionPath = scripts.args.predictionWalk = None
    settings = SimpleNamespace(**vars(scripts.args))
    settings.evalInstLevelScore = settings.JSONOutput = False
    settings.quiet, settings.predictionPath = True, str(tmp_path / "predictions")
    predictions = [scripts.getPrediction(settings, truth) for truth in truths]
    theirs = scripts.evaluateImgLists(predictions, truths, settings)
    assert run_cli("evaluate", model, *on_data, "--json", tmp_path / "ours.json")[0] == 0
    ours = json.loads((tmp_path / "ours.json").read_text())
    for name, iou in ours["per_class_iou"].items():
        expected = theirs["classScores"][name]
        assert iou is None if np.isnan(expected) else iou == pytest.approx(expected, rel=1e-9)
    assert ours["miou"] == pytest.approx(theirs["averageScoreClasses"], rel=1e-9)
    assert 0 < ours["miou"] < 1


def test_voc_by_its_definition(tmp_path: Path) -> None:
    """Intersection over union of each class over all labelled pixels of the set, as the devkit."""
    rng = np.random.default_rng(1)
    devkit = tmp_path / "VOC2012"
    names = [f"2007_{number}" for number in range(4)]
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (devkit / folder).mkdir(parents=True)
    (devkit / "ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    for number, name in enumerate(names):
        height, width = 30 + 7 * number, 50 - 5 * number
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(devkit / "JPEGImages" / f"{name}.jpg")
        mask = rng.integers(0, 19, (height, width)).astype(np.uint8)  # 19, 20: never labelled
        mask[rng.random(mask.shape) < 0.1] = 255
        if number == 3:
            mask[:] = 255
        Image.fromarray(mask).save(devkit / "SegmentationClass" / f"{name}.png")
    model = load_model(save_random(voc.CLASSES, tmp_path / "m.safetensors"))
    data = open_dataset("voc", str(tmp_path), "val")
    metrics = evaluate(model, data)
    counts = np.zeros((21, 3))  # intersection, labelled, predicted
    for index in range(len(data)):
        image, mask, _ = data.read(index)
        predicted = model.predict(image)[mask != 255]
        labelled = mask[mask != 255]
        for class_id in range(21):
            ours, theirs = predicted == class_id, labelled == class_id
            counts[class_id] += (ours & theirs).sum(), theirs.sum(), ours.sum()
    union = counts[:, 1] + counts[:, 2] - counts[:, 0]
    expected = [common / all_ for common, all_ in zip(counts[:, 0], union, strict=True) if all_]
    assert metrics.miou == pytest.approx(np.mean(expected), rel=1e-12)
    assert list(metrics.per_class_iou) == list(voc.NAMES)
