"""Weights that a network starts from: of a backbone, or of a whole trained network."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_segmenters import BACKBONE, CLASSES, MOBILENET, OTHER_CLASSES, build, logits, timm_weights

from aicsd.errors import UserError
from aicsd.models import Backbone, ModelConfig, build_model, load_model, save_model
from aicsd.runs import MODEL_FILE

REPO = Path(__file__).parents[2]
IMAGENET = REPO.parent / "shared" / "weights" / "mobilenetv2_100_imagenet.safetensors"


@pytest.mark.parametrize("name", [BACKBONE, "resnet10t", "regnetx_002", "convnext_atto"])
def test_backbone_takes_every_key_bit_for_bit(tmp_path: Path, name: str) -> None:
    stored = timm_weights(tmp_path / "b.safetensors", name)
    backbone = Backbone(name, 16, str(tmp_path / "b.safetensors"))
    # timm's feature extractor of a ConvNeXt calls stages.0 stages_0
    loaded = {
        key.replace("stages_", "stages.").replace("stem_", "stem."): value
        for key, value in backbone.body.state_dict().items()
    }
    assert loaded
    for key, value in loaded.items():
        assert torch.equal(value, stored[key]), key
    assert backbone.dropped_weights == sorted(set(stored) - set(loaded))
    head = {
        key
        for key in stored
        if key.startswith(("head.", "fc.", "classifier.", "conv_head.", "bn2."))
    }
    assert set(backbone.dropped_weights) == head


def test_nothing_is_dropped_from_a_file_without_head(tmp_path: Path) -> None:
    body = timm.create_model(BACKBONE, features_only=True)
    save_file(body.state_dict(), tmp_path / "b.safetensors")
    assert Backbone(BACKBONE, 16, str(tmp_path / "b.safetensors")).dropped_weights == []


def test_model_starts_from_the_backbone_file(tmp_path: Path) -> None:
    stored = timm_weights(tmp_path / "b.safetensors")
    model = build_model(ModelConfig(**MOBILENET, weights=str(tmp_path / "b.safetensors")), CLASSES)
    name = "backbone.body.conv_stem.weight"
    weight = model.net.get_parameter(name)
    assert torch.equal(weight, stored["conv_stem.weight"])
    assert not torch.equal(weight, build().net.get_parameter(name))


@pytest.mark.skipif(not IMAGENET.is_file(), reason=f"no {IMAGENET.name} beside the repository")
def test_recovered_imagenet_weights_fit() -> None:
    stored = load_file(IMAGENET)
    backbone = Backbone("mobilenetv2_100", 16, str(IMAGENET))
    body = backbone.body.state_dict()
    learned = {key: value for key, value in body.items() if "num_batches" not in key}
    assert set(learned) <= set(stored)
    for key, value in learned.items():
        assert torch.equal(value, stored[key]), key
    head = ("classifier.", "conv_head.", "bn2.")
    assert all(key.startswith(head) for key in backbone.dropped_weights)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    timm_weights(tmp_path / "other.safetensors", "resnet10t")
    with pytest.raises(UserError, match=f"other.safetensors does not fit backbone '{BACKBONE}'"):
        Backbone(BACKBONE, 16, str(tmp_path / "other.safetensors"))


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    timm_weights(tmp_path / "wide.safetensors", "mobilenetv2_050")
    with pytest.raises(UserError, match=r"of another shape: .*needs"):
        Backbone(BACKBONE, 16, str(tmp_path / "wide.safetensors"))


def test_a_missing_key_is_refused_and_named(tmp_path: Path) -> None:
    stored = timm_weights(tmp_path / "b.safetensors")
    del stored["blocks.3.0.conv_dw.weight"]
    save_file(stored, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"1 keys missing: blocks\.3\.0\.conv_dw\.weight"):
        Backbone(BACKBONE, 16, str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 64, pickle.dumps({"a": 1})])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "b.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        Backbone(BACKBONE, 16, str(path))
    with pytest.raises(UserError, match="not a readable safetensors file"):
        build_model(ModelConfig(**MOBILENET, weights=str(path)), CLASSES)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_model(path)


def test_missing_backbone_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no backbone weights at .*nowhere\.safetensors"):
        Backbone(BACKBONE, 16, str(tmp_path / "nowhere.safetensors"))


@pytest.mark.parametrize("as_folder", [False, True])
def test_start_from_a_trained_model(tmp_path: Path, as_folder: bool) -> None:
    trained = build(seed=1)
    save_model(trained, tmp_path / MODEL_FILE)
    weights = str(tmp_path if as_folder else tmp_path / MODEL_FILE)
    model = build_model(ModelConfig(**MOBILENET, weights=weights), CLASSES)
    assert torch.equal(logits(model), logits(trained))
    assert model.origin is not None
    assert model.origin.options["weights"] == "none"


def test_start_from_a_trained_model_with_other_classes(tmp_path: Path) -> None:
    trained = build(seed=1)
    save_model(trained, tmp_path / MODEL_FILE)
    model = build_model(ModelConfig(**MOBILENET, weights=str(tmp_path)), OTHER_CLASSES)
    assert logits(model).shape[1] == 2
    own, source = model.net.state_dict(), trained.net.state_dict()
    assert own.keys() == source.keys()
    for key, value in own.items():
        if key.startswith("classifier."):
            assert value.shape[0] == 2
        else:
            assert torch.equal(value, source[key]), key


@pytest.mark.parametrize(
    "change", [{"aspp_channels": 12}, {"backbone": "mobilenetv2_050"}, {"backbone": "resnet10t"}]
)
def test_start_from_another_architecture_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    save_model(build(), tmp_path / MODEL_FILE)
    with pytest.raises(UserError, match="another architecture"):
        build_model(ModelConfig(**{**MOBILENET, **change, "weights": str(tmp_path)}), CLASSES)


def test_start_from_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finished"):
        build_model(ModelConfig(**MOBILENET, weights=str(tmp_path)), CLASSES)


@pytest.mark.parametrize("name", ["aspp_channels", "decoder_channels", "low_level_channels"])
def test_a_width_of_zero_is_refused(name: str) -> None:
    widths: dict[str, Any] = {name: 0}
    with pytest.raises(UserError, match=f"{name} is 0"):
        ModelConfig(**widths)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="dropout is"):
        ModelConfig(dropout=value)
