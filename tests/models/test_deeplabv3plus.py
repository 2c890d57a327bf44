"""DeepLabV3+: the published sizes and dilations, and any timm backbone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import TINY_MODEL
from torch import nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.models import Backbone, DeepLabV3Plus, ModelConfig, build_model, resize
from aicsd.models.maps import STAGES
from aicsd.models.segmenter import measure_maps
from aicsd.types import SegOutput

SMALL: dict[str, Any] = {key: value for key, value in TINY_MODEL.items() if key != "backbone"}
TINY_BACKBONE = "mobilenetv2_035"


def build(backbone: str = TINY_BACKBONE, num_classes: int = 5, **changes: Any) -> DeepLabV3Plus:
    torch.manual_seed(0)
    return DeepLabV3Plus(backbone, num_classes, **{**SMALL, **changes})


def meta(backbone: str, output_stride: int = 16) -> DeepLabV3Plus:
    """A network without the time and memory of real weights."""
    with torch.device("meta"):
        return DeepLabV3Plus(backbone, 21, output_stride=output_stride)


def dilations(net: DeepLabV3Plus, stage: str) -> list[tuple[int, ...]]:
    """Dilations of the 3x3 convolutions, block by block; their padding must keep the size."""
    result = []
    for block in getattr(net.backbone.body, stage):
        convs = [
            module
            for module in block.modules()
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        ]
        assert all(conv.padding == conv.dilation for conv in convs)
        result.append(tuple(conv.dilation[0] for conv in convs))
    return result


@pytest.mark.parametrize(
    ("backbone", "count"),
    [("resnet101", 59_344_309), ("resnet18", 16_608_181), ("mobilenetv2_100", 5_816_053)],
)
def test_parameter_counts_are_the_published_ones(backbone: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in meta(backbone).parameters()) == count


@pytest.mark.parametrize(
    ("backbone", "output_stride", "stages"),
    [
        ("resnet101", 8, {"layer3": [(2,)] * 23, "layer4": [(4,), (8,), (16,)]}),
        ("resnet101", 16, {"layer3": [(1,)] * 23, "layer4": [(2,), (4,), (8,)]}),
        ("resnet101", 32, {"layer3": [(1,)] * 23, "layer4": [(1,), (1,), (1,)]}),
        ("resnet18", 8, {"layer3": [(2, 2)] * 2, "layer4": [(4, 4)] * 2}),
        ("resnet18", 16, {"layer3": [(1, 1)] * 2, "layer4": [(2, 2)] * 2}),
        ("resnet18", 32, {"layer3": [(1, 1)] * 2, "layer4": [(1, 1)] * 2}),
    ],
)
def test_dilations_are_the_published_ones(
    backbone: str, output_stride: int, stages: dict[str, list[tuple[int, ...]]]
) -> None:
    net = meta(backbone, output_stride)
    for stage, expected in stages.items():
        assert dilations(net, stage) == expected
    for stage in ("layer1", "layer2"):
        assert {rate for block in dilations(net, stage) for rate in block} == {1}


@pytest.mark.parametrize("backbone", ["mobilenetv2_100", "mobilenetv2_050"])
@pytest.mark.parametrize(
    ("output_stride", "rates"),
    [(8, (1, 1, 1, 1, 2, 2, 4)), (16, (1, 1, 1, 1, 1, 1, 2)), (32, (1,) * 7)],
)
def test_mobilenetv2_in_the_released_layout(
    backbone: str, output_stride: int, rates: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        body: Any = Backbone(backbone, output_stride, released_layout=True).body
    assert [len(stage) for stage in body.blocks] == [1, 2, 3, 4, 3, 3, 1]
    for number, (stage, rate) in enumerate(zip(body.blocks, rates, strict=True)):
        for block in stage:
            assert block.conv_dw.dilation == (rate, rate)
            moved = number > 0
            assert block.conv_dw.padding == ((0, 0) if moved else (rate, rate))
            assert block.conv_pw.padding == ((rate, rate) if moved else (0, 0))


def test_mobilenetv2_in_the_layout_of_its_imagenet_weights() -> None:
    with torch.device("meta"):
        body: Any = Backbone("mobilenetv2_100", 16).body
    rates = [[block.conv_dw.dilation[0] for block in stage] for stage in body.blocks]
    assert rates == [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1], [1, 1, 1], [1, 2, 2], [2]]
    for stage in body.blocks:
        for block in stage:
            assert block.conv_pw.padding == (0, 0)
            assert block.conv_dw.padding == block.conv_dw.dilation


@pytest.mark.parametrize(
    ("output_stride", "rates"), [(8, [12, 24, 36]), (16, [6, 12, 18]), (32, [3, 6, 9])]
)
def test_rates_of_the_pyramid(output_stride: int, rates: list[int]) -> None:
    branches: Any = build(output_stride=output_stride).aspp.branches
    assert [branch[0].kernel_size[0] for branch in branches] == [1, 3, 3, 3]
    assert [branch[0].dilation[0] for branch in branches[1:]] == rates
    assert all(branch[0].bias is None for branch in branches)


def test_widths_are_the_published_ones() -> None:
    net = meta("resnet101")
    assert (net.backbone.low.channels, net.backbone.high.channels) == (256, 2048)
    assert net.reduce_low[0].weight.shape == (48, 256, 1, 1)
    assert net.aspp.project[0].weight.shape == (256, 1280, 1, 1)
    assert net.fuse1[0].weight.shape == (256, 304, 3, 3)
    assert net.fuse2[0].weight.shape == (256, 256, 3, 3)
    assert net.classifier.weight.shape == (21, 256, 1, 1)
    assert net.classifier.bias is not None


def test_dropout_probabilities_are_the_published_ones() -> None:
    net = build()
    found = [module.p for module in (net.aspp_dropout, net.fuse1_dropout, net.fuse2_dropout)]
    assert found == [0.5, 0.5, 0.1]
    head = [m for name, m in net.named_modules() if not name.startswith("backbone")]
    assert sum(isinstance(module, nn.Dropout) for module in head) == 3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_dropout_can_be_changed(dropout: float) -> None:
    net = build(dropout=dropout)
    found = [module.p for module in (net.aspp_dropout, net.fuse1_dropout, net.fuse2_dropout)]
    assert found == pytest.approx([dropout, dropout, dropout / 5])


@pytest.mark.parametrize("name", ["aspp_dropout", "fuse1_dropout", "fuse2_dropout"])
def test_each_dropout_acts_in_training_only(name: str) -> None:
    net = build().eval()
    image = torch.randn(2, 3, 32, 32)
    still = net(image).logits
    assert torch.equal(net(image).logits, still)
    getattr(net, name).train()
    assert not torch.equal(net(image).logits, still)


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (65, 33), (61, 50), (47, 63)])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_shapes_at_any_size(output_stride: int, size: tuple[int, int]) -> None:
    net = build(output_stride=output_stride).eval()
    with torch.no_grad():
        logits, features, _ = net(torch.randn(2, 3, *size))
    quarter = tuple(math.ceil(length / 4) for length in size)
    deep = tuple(math.ceil(length / output_stride) for length in size)
    assert logits.shape == (2, 5, *quarter)
    found = {name: tuple(maps.shape[1:]) for name, maps in features.items()}
    assert found == {
        **{
            name: (info.channels, *(math.ceil(length / info.stride) for length in size))
            for name, info in net.maps.items()
            if name != "logits"
        },
        "low_level": (net.backbone.low.channels, *quarter),
        "high_level": (net.backbone.high.channels, *deep),
        "aspp": (8, *deep),
        "decoder": (8, *quarter),
    }
    assert [name for name in net.maps if name.startswith("stage")] == list(STAGES)
    assert found["stage1"] == found["low_level"]
    assert found["stage4"] == found["high_level"]
    assert net.maps["logits"] == (5, 4)
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("output_stride", [8, 16])
def test_resnet_keeps_its_size_under_dilation(output_stride: int) -> None:
    net = build("resnet10t", output_stride=output_stride).eval()
    with torch.no_grad():
        output = net(torch.randn(1, 3, 49, 64))
    deep = tuple(math.ceil(length / output_stride) for length in (49, 64))
    assert output.features["high_level"].shape[2:] == deep
    assert output.logits.shape == (1, 5, 13, 16)


@pytest.mark.parametrize(
    ("backbone", "output_stride"),
    [
        ("resnet10t", 16),
        ("efficientnet_lite0", 16),
        ("regnetx_002", 16),
        ("convnext_atto", 32),
        ("test_efficientnet", 8),
    ],
)
def test_any_backbone_with_maps_trains(backbone: str, output_stride: int) -> None:
    net = build(backbone, output_stride=output_stride).train()
    output = net(torch.randn(2, 3, 64, 64))
    assert isinstance(output, SegOutput)
    assert output.logits.shape == (2, 5, 16, 16)
    assert output.features["high_level"].shape[-1] == 64 // output_stride
    output.logits.square().mean().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert not missing


def test_features_are_what_their_names_say() -> None:
    net = build().eval()
    image = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        logits, features, _ = net(image)
        stages = net.backbone(image)
        low, high = stages[0], stages[-1]
        for number, stage in enumerate(stages, start=1):
            assert torch.equal(features[f"stage{number}"], stage)
        assert torch.equal(features["low_level"], low)
        assert torch.equal(features["high_level"], high)
        assert torch.equal(features["aspp"], net.aspp(high))
        assert torch.equal(net.classifier(features["decoder"].relu()), logits)
    for name in ("aspp", "decoder"):
        assert float(features[name].min()) < 0


def test_a_transformer_with_channels_last_takes_any_size() -> None:
    torch.manual_seed(0)
    config = ModelConfig("swin_tiny_patch4_window7_224", 32, 8, 8, 4)
    model = build_model(config, Classes(("a", "b"), ((0, 0, 0), (9, 9, 9)))).eval()
    assert model.input.multiple == 4
    assert [info.channels for name, info in model.maps.items() if "stage" in name] == [
        96,
        192,
        384,
        768,
    ]
    image = torch.randint(0, 256, (2, 3, 66, 93), dtype=torch.uint8)
    with torch.no_grad():
        output = model(image)
        padded = nn.functional.pad(model.normalize(image), (0, 3, 0, 2))
        whole = model.net(padded)
    assert measure_maps(model) == model.maps
    assert output.logits.shape == (2, 2, 66, 93)
    wanted = resize(whole.logits, (68, 96), align_corners=True)[..., :66, :93]
    assert torch.equal(output.logits, wanted)
    assert torch.equal(output.features["stage1"], whole.features["stage1"])
    assert output.features["stage4"].shape == (2, 768, 3, 3)


def test_backbone_names_its_normalisation() -> None:
    backbone = Backbone(TINY_BACKBONE)
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert backbone.std == (0.229, 0.224, 0.225)
    assert (backbone.low.stride, backbone.high.stride) == (4, 16)
    assert Backbone("mobilevit_xxs", 32).mean == (0.0, 0.0, 0.0)


def test_a_training_batch_of_one_is_refused() -> None:
    net = build()
    with pytest.raises(UserError, match="batch of 1 image"):
        net.train()(torch.randn(1, 3, 32, 32))
    with torch.no_grad():
        assert net.eval()(torch.randn(1, 3, 32, 32)).logits.shape == (1, 5, 8, 8)


def test_an_image_in_evaluation_does_not_depend_on_its_batch() -> None:
    net = build().eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together = net(images).logits
        alone = torch.cat([net(image[None]).logits for image in images])
    torch.testing.assert_close(together, alone)


def test_resize_aligns_the_corners() -> None:
    maps = torch.randn(2, 3, 4, 5)
    larger = resize(maps, (13, 17), align_corners=True)
    assert torch.equal(larger[:, :, ::3, ::4][:, :, 0, 0], maps[:, :, 0, 0])
    torch.testing.assert_close(larger[:, :, ::4, ::4], maps)
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    torch.testing.assert_close(
        resize(ramp, (4, 7), align_corners=True)[0, 0, 0], torch.arange(7) / 2
    )
    assert resize(maps, (4, 5), align_corners=True) is maps


@pytest.mark.parametrize(
    ("backbone", "output_stride", "words"),
    [
        ("resnet19", 16, ["unknown backbone 'resnet19'", "resnet18"]),
        ("xyzzyxyzzy", 16, ["unknown backbone", "timm.list_models"]),
        ("vit_tiny_patch16_224", 16, ["vit_tiny_patch16_224", "output_stride 16"]),
        (
            "vit_tiny_patch16_224",
            32,
            ["at strides [16, 16, 16]; one at stride 4 is needed: choose"],
        ),
        ("gcvit_xxtiny", 32, ["gcvit_xxtiny", "224x224 pixels only", "any size"]),
        ("vgg11", 16, ["vgg11", "output_stride 16"]),
        ("densenet121", 8, ["densenet121", "output_stride 8"]),
        (TINY_BACKBONE, 4, ["output_stride is 4", "8, 16, 32"]),
        (TINY_BACKBONE, 0, ["output_stride is 0"]),
        (TINY_BACKBONE, 12, ["output_stride is 12"]),
    ],
)
def test_what_cannot_serve_is_refused(backbone: str, output_stride: int, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build(backbone, output_stride=output_stride)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
