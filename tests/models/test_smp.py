"""Networks of segmentation_models_pytorch, against the library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_sources import settle
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.models import ModelConfig, build_model, load_model, save_model
from aicsd.models.maps import resize
from aicsd.models.sources import smp as source

smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed"
)
CLASSES = Classes(("a", "b", "c"), ((0, 0, 0),) * 3)
NARROW: dict[str, dict[str, Any]] = {
    **{key: {"decoder_channels": [16, 16, 8, 8, 8]} for key in ("unet", "unetplusplus", "manet")},
    **{key: {"decoder_channels": 16} for key in ("deeplabv3", "deeplabv3plus", "upernet")},
    "dpt": {"decoder_intermediate_channels": [8, 8, 16, 16], "decoder_fusion_channels": 16},
    "fpn": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "pspnet": {"psp_out_channels": 16},
    "segformer": {"decoder_segmentation_channels": 16},
}
"""Architecture -> options of a quick decoder."""
VIT = "tu-test_vit"


def own_network(name: str, classes: int = 3) -> Any:
    """A network of the library that sees every class on noise."""
    torch.manual_seed(0)
    options = dict(NARROW.get(name, {}))
    encoder = VIT if name == "dpt" else "tu-test_resnet"
    if name == "dpt":
        options["dynamic_img_size"] = True
    kind = smp.MODEL_ARCHITECTURES_MAPPING[name]
    net: nn.Module = kind(encoder, encoder_weights=None, classes=classes, **options)
    if classes > 1:
        settle(net, prepare(noise(128, 160)))
    return net.eval()


def noise(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    fine = np.random.default_rng(1).integers(-20, 20, (height, width, 3))
    large = coarse.repeat(8, 0).repeat(8, 1)[:height, :width] + fine
    return large.clip(0, 255).astype(np.uint8)


def prepare(image: np.ndarray) -> Tensor:
    """With the mean and deviation that timm says of both encoders."""
    return (torch.from_numpy(image).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5


def test_every_architecture_of_the_library_is_there() -> None:
    assert source.names() == sorted(smp.MODEL_ARCHITECTURES_MAPPING)


@pytest.mark.parametrize("name", source.ARCHITECTURES)
def test_labels_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    own = own_network(name)
    own.save_pretrained(str(tmp_path / "net"))
    model = load_model(tmp_path / "net")
    assert (model.classes.names, model.training) == (("class_0", "class_1", "class_2"), False)
    # the smallest map of PAN is that of 1/128 of the image
    for height, width in ((128, 160), (114, 150)) if name == "pan" else ((64, 96), (50, 70)):
        image = noise(height, width)
        pixels = prepare(image)
        if own.requires_divisible_input_shape:
            # the library asks for 16 of DPT, whose decoder then fails
            stride = 32 if name == "dpt" else own.encoder.output_stride
            pixels = F.pad(pixels, (0, -width % stride, 0, -height % stride))
        with torch.no_grad():
            wanted = own(pixels)[0, :, :height, :width]
            logits = model(torch.from_numpy(image).permute(2, 0, 1)[None]).logits
        found = resize(logits, (height, width), model.align_corners)[0]
        assert (model.predict(image) == wanted.argmax(0).numpy()).mean() >= 0.999
        # centred, so that random weights give every class somewhere
        middle = wanted.mean((1, 2), keepdim=True)
        labels = (wanted - middle).argmax(0)
        assert ((found - middle).argmax(0) == labels).float().mean() >= 0.999
        assert len(labels.unique()) > 1


@pytest.mark.parametrize("name", source.ARCHITECTURES)
def test_what_an_architecture_declares(name: str, tmp_path: Path) -> None:
    # encoders of the library itself are larger: one with dilated stages, and one without
    own = {"dpt": VIT, "deeplabv3": "resnet18", "unet": "resnet18"}
    encoder = own.get(name, "tu-test_resnet")
    options = {"encoder": encoder, **NARROW.get(name, {})}
    model = build_model(ModelConfig(family=f"smp:{name}", options=options), CLASSES)
    strides = [model.maps[stage].stride for stage in ("stage1", "stage2")]
    assert strides == ([16, 16] if name == "dpt" else [4, 8])
    assert {"logits", "decoder"} <= model.maps.keys()
    assert ("stage4" in model.maps) == (name != "pspnet")
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    model.train()
    if model.min_batch == 2:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            model(image)
    else:
        model(image)
    save_model(model, tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors")
    assert (loaded.origin, loaded.input) == (model.origin, model.input)
    assert loaded.predict(noise(40, 50)).shape == (40, 50)
    assert len(loaded.backbone_parameters()) > 0


def test_one_logit_of_two_classes(tmp_path: Path) -> None:
    own = own_network("unet", classes=1)
    own.save_pretrained(str(tmp_path))
    (tmp_path / "classes.txt").write_text("sky\nbird\n")
    image = noise(64, 64)
    with torch.no_grad():
        own.segmentation_head[0].bias -= own(prepare(image)).median()
        own.save_pretrained(str(tmp_path))
        wanted = (own(prepare(image)).sigmoid() > 0.5)[0, 0].numpy()
    model = load_model(f"smp:{tmp_path}")
    assert model.classes.names == ("sky", "bird")
    assert (model.predict(image) == wanted).mean() >= 0.999
    assert 0.2 < wanted.mean() < 0.8
    save_model(model, tmp_path / "copy.safetensors")
    assert np.array_equal(
        load_model(tmp_path / "copy.safetensors").predict(image), model.predict(image)
    )


@pytest.mark.parametrize(
    ("encoder", "mean"), [("resnet18", 0.485), ("xception", 0.5), ("tu-mobilevit_xxs", 0.0)]
)
def test_the_input_is_that_of_the_encoder(encoder: str, mean: float) -> None:
    model = build_model(
        ModelConfig(family="smp", options={"name": "fpn", "encoder": encoder}), CLASSES
    )
    assert model.input.mean[0] == mean
    assert model.input.multiple == 32


def test_the_backbone_is_the_encoder() -> None:
    model = build_model(ModelConfig(family="smp:unet", backbone="mobilenet_v2"), CLASSES)
    assert model.origin is not None
    assert model.origin.options["encoder"] == "mobilenet_v2"
    config = ModelConfig(family="smp:unet", backbone="a", options={"encoder": "b"})
    with pytest.raises(UserError, match="are the same option"):
        build_model(config, CLASSES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "unett"}, "no architecture 'unett'; did you mean 'unet'"),
        ({"name": "unet", "encoder": "resnet19"}, "no encoder 'resnet19'; did you mean 'resnet1"),
        ({"name": "unet", "decoder_chanels": [8]}, "did you mean 'decoder_channels'"),
        ({"name": "unet", "decoder_channels": [8]}, "cannot be built: Model depth is 5"),
        ({"name": "unet", "img_size": 64}, "unknown key 'img_size'"),
        ({"name": "unet", "binary": True}, "binary is for 2 classes, not 3"),
        ({"name": "unet", "weights": "coco"}, "weights is 'coco'; smp has none, imagenet"),
        ({"name": "dpt", "encoder": "resnet18"}, "must start with 'tu-'"),
    ],
)
def test_what_cannot_be_built(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig(family="smp", options=options), CLASSES)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    own_network("unet").save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())

    def refused(words: str, **changes: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=words):
            load_model(tmp_path)

    refused("names no network", _model_class="os")
    refused("only networks for 3 channels", in_channels=4)
    refused("does not hold the network.*of another shape: head.weight", classes=5)
    refused("does not hold the network.*keys missing", encoder_name="mobilenet_v2")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    refused("names 2 classes, and the network has 3")
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused("pytorch_model.bin is a pickle.*not read")
    with pytest.raises(UserError, match="names an architecture without weights"):
        load_model("smp:unet")
    with pytest.raises(UserError, match=r"no folder \./nowhere"):
        load_model("smp:./nowhere")
