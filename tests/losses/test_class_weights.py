"""Class weights from the pixels of the training data, from the rule to the training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY_MODEL
from draws import draw, draw_mask
from PIL import Image

import aicsd
from aicsd.errors import UserError
from aicsd.losses import CrossEntropyLoss, cross_entropy_loss
from aicsd.losses._class_weights import weights_from_pixels
from aicsd.methods import load_recipe
from aicsd.models import MapInfo
from aicsd.terms import Term
from aicsd.types import Batch, SegOutput

PIXELS = (600, 300, 100, 0)


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        ("balanced", [10 / 24, 10 / 12, 10 / 4, 0]),
        ("sqrt_balanced", [math.sqrt(10 / 24), math.sqrt(10 / 12), math.sqrt(10 / 4), 0]),
        ("log_balanced", [1 / math.log(1.62), 1 / math.log(1.32), 1 / math.log(1.12), 0]),
    ],
)
def test_rules(rule: Any, weights: list[float]) -> None:
    assert weights_from_pixels(rule, PIXELS) == pytest.approx(weights)


def test_balanced_weights_are_those_of_sklearn() -> None:
    utils = pytest.importorskip("sklearn.utils")
    labels = np.repeat([0, 1, 2], PIXELS[:3])
    expected = utils.compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert weights_from_pixels("balanced", PIXELS[:3]) == pytest.approx(expected.tolist())


def test_a_loss_with_a_rule_needs_the_pixels() -> None:
    logits, mask = draw((2, 4, 3, 3)), draw_mask((2, 4, 3, 3))
    loss = CrossEntropyLoss(class_weights="balanced", class_pixels=PIXELS)
    expected = cross_entropy_loss(
        logits, mask, class_weights=weights_from_pixels("balanced", PIXELS)
    )
    assert torch.equal(loss(logits, mask), expected)
    with pytest.raises(UserError, match=r"'balanced', which needs class_pixels"):
        CrossEntropyLoss(class_weights="balanced")(logits, mask)
    with pytest.raises(UserError, match=r"3 weights, and the logits \(2, 4, 3, 3\) have 4 classes"):
        cross_entropy_loss(logits, mask, class_weights=[1.0, 2.0, 3.0])


def test_a_term_gets_the_pixels() -> None:
    recipe = load_recipe("none", {"cross_entropy": {"class_weights": "sqrt_balanced"}})
    assert recipe.needs_class_pixels
    assert recipe.to_dict()["cross_entropy"]["class_weights"] == "sqrt_balanced"
    assert not load_recipe("aicsd").needs_class_pixels
    maps = {"logits": MapInfo(4, 1)}
    term = Term("cross_entropy", recipe.terms["cross_entropy"], maps, None, PIXELS)
    logits, mask = draw((2, 4, 3, 3)), draw_mask((2, 4, 3, 3))
    batch = Batch(torch.zeros(2, 3, 3, 3, dtype=torch.uint8), mask, valid=mask != 255)
    weights = weights_from_pixels("sqrt_balanced", PIXELS)
    expected = cross_entropy_loss(logits, mask, class_weights=weights)
    assert torch.equal(term(SegOutput(logits, {}), None, batch, 0.5), expected)
    with pytest.raises(UserError, match="term 'cross_entropy': class_weights is 'sqrt_balanced'"):
        Term("cross_entropy", recipe.terms["cross_entropy"], maps, None)


def test_a_training_counts_its_own_labels(tiny_folder: Path, tmp_path: Path) -> None:
    """The rule and the weights that follow from the masks of the training split: one run."""
    counts = np.zeros(256, np.int64)
    for path in (tiny_folder / "masks" / "train").iterdir():
        counts += np.bincount(np.asarray(Image.open(path)).ravel(), minlength=256)
    weights = weights_from_pixels("balanced", counts[:3].tolist())
    assert len(set(weights)) == 3
    found = []
    for name, given in (("rule", "balanced"), ("list", weights), ("none", None)):
        run = aicsd.train(
            TINY_MODEL,
            {
                "name": "folder",
                "root": str(tiny_folder),
                "batch_size": 4,
                "workers": 0,
                "augment": {"crop": 48},
            },
            tmp_path / name,
            epochs=1,
            accelerator="cpu",
            logger="none",
            val_every=0,
            report_images=0,
            terms={"cross_entropy": {"class_weights": given}},
        )
        found.append(torch.cat([p.flatten() for p in run.student.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    saved = yaml.safe_load((tmp_path / "rule" / "config.yaml").read_text())
    assert saved["terms"]["cross_entropy"]["class_weights"] == "balanced"
