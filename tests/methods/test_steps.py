"""Every method trains two networks of other widths, and goes on exactly from a saved state."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import TINY_MODEL
from lightning_fabric import Fabric
from torch import Tensor

from aicsd.data import Classes
from aicsd.distiller import Distiller
from aicsd.engine.step import Training, train_step
from aicsd.methods import Recipe, list_methods, load_recipe
from aicsd.models import ModelConfig, Segmenter, build_model
from aicsd.run_config import OptimizerConfig
from aicsd.teacher import Teacher
from aicsd.types import IGNORE_INDEX, Batch

CLASSES = Classes(("ground", "disc", "bar"), ((0, 0, 0), (255, 0, 0), (0, 0, 255)))
SIDE = 32
SETTINGS = OptimizerConfig(name="adamw", lr=1e-3, head_lr_factor=1.0)
WITH_FEATURES: dict[str, dict[str, dict[str, Any]]] = {
    "cwd on features": {
        "features": {"loss": "channel_wise", "at": "stage4", "adapter": "conv1x1"},
    },
    "feature_kd by confidence": {"feature_kd": {"at": ["stage4", "logits"], "adapter": "conv1x1"}},
}
"""Terms that no recipe has."""


@pytest.fixture(scope="module")
def networks() -> tuple[Segmenter, Segmenter]:
    """Student and teacher, of different widths in every stage; nothing changes this student."""
    torch.manual_seed(0)
    wide = {**TINY_MODEL, "backbone": "test_efficientnet", "aspp_channels": 12}
    student, teacher = (build_model(ModelConfig(**keys), CLASSES) for keys in (TINY_MODEL, wide))
    return student, teacher


def recipe_of(name: str) -> Recipe:
    terms = WITH_FEATURES.get(name)
    return load_recipe(name) if terms is None else load_recipe("none", terms)


def batches(count: int, start: int = 0) -> Iterator[Batch]:
    """Random images; labels in blobs, some of them unlabelled; one image with padding."""
    for number in range(start, start + count):
        random = torch.Generator().manual_seed(number)
        image = torch.randint(256, (2, 3, SIDE, SIDE), generator=random).to(torch.uint8)
        coarse = torch.randint(4, (2, 4, 4), generator=random)
        mask = coarse.repeat_interleave(SIDE // 4, 1).repeat_interleave(SIDE // 4, 2)
        mask[mask == 3] = IGNORE_INDEX
        valid = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
        valid[1, SIDE // 2 :] = False
        mask[~valid] = IGNORE_INDEX
        yield Batch(image, mask, valid=valid)


def prepare(recipe: Recipe, networks: tuple[Segmenter, Segmenter], seed: int) -> Training:
    torch.manual_seed(seed)
    student, teacher = networks
    distiller = Distiller(copy.deepcopy(student), recipe, Teacher(teacher, CLASSES))
    fabric = Fabric(accelerator="cpu", devices=1)
    return Training(SETTINGS, 0, distiller, fabric)


def step(training: Training, number: int) -> dict[str, Tensor]:
    return train_step(training, batches(1, number), number, number / 3).losses


@pytest.mark.parametrize("name", [*list_methods(), *WITH_FEATURES])
def test_a_method_trains_and_goes_on_from_a_saved_state(
    name: str, networks: tuple[Segmenter, Segmenter]
) -> None:
    recipe = recipe_of(name)
    training = prepare(recipe, networks, seed=1)
    before = {key: value.clone() for key, value in training.distiller.named_parameters()}
    losses = step(training, 0)
    assert set(losses) == {"loss", *recipe.active}
    assert all(bool(value.isfinite()) for value in losses.values()), losses
    for key, value in training.distiller.terms.named_parameters():
        if not value.requires_grad:
            continue
        assert not torch.equal(value, before[f"terms.{key}"]), key
    saved = io.BytesIO()
    torch.save(training.state_dict(), saved)
    saved.seek(0)

    other = prepare(recipe, networks, seed=2)
    other.load_state_dict(torch.load(saved, weights_only=True))
    losses, again = step(training, 1), step(other, 1)
    assert losses.keys() == again.keys()
    assert all(torch.equal(losses[key], again[key]) for key in losses)
    states = [each.distiller.state_dict() for each in (training, other)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
