"""The contract of a source, for a tiny network of every family."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import CLASS_NAMES
from torch import Tensor, nn

from aicsd.data import voc
from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.errors import UserError
from aicsd.exporting import export_model
from aicsd.methods import load_recipe
from aicsd.models import ModelConfig, Segmenter, build_model, load_model, save_model
from aicsd.models.maps import as_output, evaluating
from aicsd.models.segmenter import measure_maps
from aicsd.models.sources import SOURCES, find_source
from aicsd.models.sources import torchvision as torchvision_source
from aicsd.teacher import Teacher
from aicsd.types import Batch

CLASSES = Classes(CLASS_NAMES, ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
OTHER = Classes(("a", "b", "c", "d"), ((0, 0, 0),) * 4)

CASES: dict[str, dict[str, Any]] = {
    "deeplabv3plus": {"backbone": "test_resnet", "aspp_channels": 8, "decoder_channels": 8},
    "lraspp": {
        "family": "lraspp",
        "backbone": "test_resnet",
        "options": {"channels": 8},
    },
    "torchvision:lraspp_mobilenet_v3_large": {"family": "torchvision:lraspp_mobilenet_v3_large"},
    "torchvision:deeplabv3_mobilenet_v3_large": {
        "family": "torchvision",
        "options": {"name": "deeplabv3_mobilenet_v3_large"},
    },
    "smp:unet": {
        "family": "smp:unet",
        "options": {"encoder": "tu-test_resnet", "decoder_channels": [16, 16, 8, 8, 8]},
    },
    "transformers:segformer": {
        "family": "transformers:segformer",
        "options": {
            "config": {
                "hidden_sizes": [8, 16, 16, 24],
                "depths": [1, 1, 1, 1],
                "num_attention_heads": [1, 1, 2, 2],
                "decoder_hidden_size": 16,
            }
        },
    },
}
"""A network of every family that can be built: reference of its kind -> keys of its config."""
STAGES = {"stage1": 4, "stage2": 8}
"""Strides that every family has; deeper stages may be dilated."""


def build(keys: dict[str, Any], seed: int = 0, classes: Classes = CLASSES) -> Segmenter:
    torch.manual_seed(seed)
    model = build_model(ModelConfig(**keys), classes)
    settle(model.net, model.normalize(batch_of(noise(64, 64))))
    return model


@torch.no_grad()
def settle(net: nn.Module, image: Tensor) -> None:
    """Statistics of batch norms and a classifier's bias with which several classes are seen."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    net.train()
    net(image.expand(2, -1, -1, -1))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    with evaluating(net):
        logits = as_output(net(image)).logits
        last = [
            module
            for module in net.modules()
            if isinstance(module, nn.Conv2d) and module.out_channels == logits.shape[1]
        ][-1]
        assert last.bias is not None
        last.bias -= logits.mean((0, 2, 3))


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def batch_of(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None]


@pytest.mark.parametrize("case", CASES)
def test_maps_are_as_declared_at_any_size(case: str) -> None:
    model = build(CASES[case]).eval()
    declared = model.maps
    assert declared["logits"].channels == 3
    assert {name: declared[name].stride for name in STAGES} == STAGES
    assert "stage4" in declared
    assert measure_maps(model) == declared
    for size in ((96, 64), (65, 97)):
        with torch.no_grad():
            output = model(batch_of(noise(*size)).expand(2, -1, -1, -1))
        assert output.align_corners is model.align_corners
        found = {"logits": output.logits, **output.features}
        assert found.keys() == declared.keys()
        for name, maps in found.items():
            channels, stride = declared[name]
            assert maps.shape[:2] == (2, channels)
            assert abs(maps.shape[2] - size[0] / stride) <= 1
            assert abs(maps.shape[3] - size[1] / stride) <= 1
            assert bool(maps.isfinite().all())


@pytest.mark.parametrize("case", CASES)
def test_a_saved_network_is_the_same(case: str, tmp_path: Path) -> None:
    model, path = build(CASES[case]), tmp_path / "m.safetensors"
    save_model(model, path)
    loaded = load_model(path)
    assert not loaded.training
    assert (loaded.origin, loaded.input, loaded.maps) == (model.origin, model.input, model.maps)
    assert (loaded.align_corners, loaded.min_batch) == (model.align_corners, model.min_batch)
    assert loaded.backbone == model.backbone
    image = batch_of(noise(48, 64))
    with torch.no_grad():
        assert torch.equal(loaded(image).logits, model.eval()(image).logits)
    own = len(loaded.backbone_parameters())
    assert (own > 0) == bool(model.backbone)
    assert own < len(list(loaded.parameters()))


@pytest.mark.parametrize("case", CASES)
def test_a_network_starts_from_a_trained_one_with_other_classes(case: str, tmp_path: Path) -> None:
    trained, path = build(CASES[case], seed=1, classes=OTHER), tmp_path / "m.safetensors"
    save_model(trained, path)
    config = ModelConfig(**{**CASES[case], "weights": str(path)})
    started = build_model(config, CLASSES)
    stored, own = trained.net.state_dict(), started.net.state_dict()
    anew = [key for key in own if own[key].shape != stored[key].shape]
    assert 0 < len(anew) <= 4
    assert all(torch.equal(own[key], stored[key]) for key in own if key not in anew)


@pytest.mark.parametrize("case", CASES)
def test_two_steps_of_distillation(case: str) -> None:
    """A term on logits and one on features, of a network as student and as teacher."""
    terms = {
        "kd": {"loss": "pixel_kd", "weight": 1},
        "at": {"loss": "attention", "at": "stage2", "weight": 1},
    }
    for student, teacher in (
        (build(CASES[case]), build(CASES["lraspp"], seed=2)),
        (build(CASES["lraspp"], seed=2), build(CASES[case], seed=3)),
    ):
        assert {"loss", "kd", "at"} <= two_steps(student, teacher, terms, 64).keys()


def two_steps(
    student: Segmenter, teacher: Segmenter, terms: dict[str, Any], side: int
) -> dict[str, Tensor]:
    """The student learns in two steps, and the teacher stays as it was; losses of the last."""
    images = torch.stack([batch_of(noise(side, side))[0]] * 2)
    mask = torch.randint(0, 3, (2, side, side), generator=torch.Generator().manual_seed(0))
    batch = Batch(images, mask, mask >= 0)
    frozen = Teacher(teacher, CLASSES)
    frozen.speed_up("eager", side)
    distiller = Distiller(student.train(), load_recipe("none", terms), frozen)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01)
    before = {key: value.clone() for key, value in teacher.net.state_dict().items()}
    values: list[dict[str, Tensor]] = []
    for _ in range(2):
        losses = distiller(batch, 0.5)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        values.append(losses)
    assert all(bool(value.isfinite()) for losses in values for value in losses.values())
    assert values[0]["loss"] != values[1]["loss"]
    assert all(torch.equal(before[key], v) for key, v in teacher.net.state_dict().items())
    return values[-1]


# seconds each, by the number of layers; other families are in tests/export, test_other_families.py
SHALLOW: dict[str, dict[str, Any]] = {
    "lraspp": CASES["lraspp"],
    "smp:unet": {
        "family": "smp:unet",
        "options": {
            "encoder": "tu-test_resnet",
            "encoder_depth": 3,
            "decoder_channels": [16, 8, 8],
        },
    },
    "transformers:segformer": {
        "family": "transformers:segformer",
        "options": {
            "config": {
                "num_encoder_blocks": 2,
                "hidden_sizes": [8, 16],
                "depths": [1, 1],
                "num_attention_heads": [1, 2],
                "sr_ratios": [2, 1],
                "patch_sizes": [7, 3],
                "strides": [4, 2],
                "mlp_ratios": [2, 2],
                "decoder_hidden_size": 16,
            }
        },
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SHALLOW)
def test_an_exported_network_gives_the_same_labels(case: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    model = build(SHALLOW[case]).eval()
    parity = export_model(model, tmp_path / "m.onnx")
    assert parity.agreement is not None
    assert parity.agreement >= 0.999
    image = noise(90, 70)
    same = load_model(tmp_path / "m.onnx").predict(image) == model.predict(image)
    assert same.mean() >= 0.999
    assert len(np.unique(model.predict(image))) > 1


@pytest.mark.parametrize("case", CASES)
def test_unknown_options_are_named(case: str) -> None:
    config = ModelConfig(**CASES[case])
    family, options = config.of_family()
    source = find_source(family)
    assert source is not None
    with pytest.raises(UserError, match=rf"family {family}: unknown key 'nothing'"):
        source.build({**options, "nothing": 1}, CLASSES)
    if "weights" not in {key.name for key in fields(source.Options)}:  # type: ignore[attr-defined]
        return
    with pytest.raises(UserError, match=rf"family {family}: unknown key 'weigths'.*'weights'"):
        source.build({**options, "weigths": "none"}, CLASSES)
    with pytest.raises(UserError, match=r"weights is 3; it must be a text"):
        source.build({**options, "weights": 3}, CLASSES)


def test_every_family_that_can_be_built_is_tested() -> None:
    built = {source.PREFIX for source in SOURCES if source.names()}
    assert built == {case.partition(":")[0] for case in CASES}
    assert len({source.PREFIX for source in SOURCES}) == len(SOURCES)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"family": "torchvison:x"}, "unknown family 'torchvison'; did you mean 'torchvision'"),
        ({"family": "hf:a/b"}, "networks of the hub are loaded, and not built"),
        ({"family": "torchvision"}, "family torchvision needs the option name"),
        ({"family": "torchvision:lraspp_mobilenet"}, "did you mean 'lraspp_mobilenet_v3_large'"),
        ({"family": "transformers:segformer-b9"}, "to build; did you mean 'segformer-b"),
        (
            {"family": "transformers:segformer-b0", "options": {"config": {"depths": "x"}}},
            "transformers has no segmentation network 'segformer-b0'; did you mean 'segformer'",
        ),
        (
            {"family": "transformers:segformer", "options": {"config": {"depths": [1]}}},
            "transformers:segformer cannot be built",
        ),
        ({"family": "lraspp", "output_stride": 8, "options": {"output_stride": 8}}, "given twice"),
        ({"family": "lraspp", "aspp_channels": 8}, "unknown key 'aspp_channels'"),
        ({"family": "lraspp", "options": {"channels": 0}}, "channels is 0"),
        ({"family": "lraspp", "options": {"channels": 1.5}}, "a whole number"),
        ({"options": {"chanels": 8}}, "family deeplabv3plus: unknown key 'chanels'"),
    ],
)
def test_what_cannot_be_built_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig(**keys), CLASSES)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_torchvision_labels_are_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    own = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=21)
    image = noise(120, 88)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(image) / 255 - mean) / std).permute(2, 0, 1)[None]
    settle(own, pixels)
    monkeypatch.setattr(torchvision_source, "_download", lambda _: own.state_dict())
    model = load_model(f"torchvision:{name}")
    assert model.classes == voc.CLASSES
    with torch.no_grad():
        wanted = own.eval()(pixels)["out"].argmax(1)[0].numpy()
    assert (model.predict(image) == wanted).mean() >= 0.999
    assert len(np.unique(wanted)) > 1


def test_torchvision_weights_that_cannot_be_downloaded_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    name = "torchvision:lraspp_mobilenet_v3_large"
    with pytest.raises(UserError, match="could not be downloaded"):
        load_model(name)
    with pytest.raises(UserError, match="could not be downloaded"):
        build_model(ModelConfig(family=name, weights="imagenet"), CLASSES)


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("torchvision:resnet50", "torchvision has no segmentation network 'resnet50'"),
        ("torchvison:deeplabv3_resnet50", "no model at torchvison:.*did you mean 'torchvision:'"),
        ("lraspp:x", "no trained networks by name"),
        ("deeplabv3plus:x", "no trained networks by name"),
        ("C:x", "no model at C:x; give a run folder, a model file or hf:"),
    ],
)
def test_references_that_name_nothing(reference: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_model(reference)
