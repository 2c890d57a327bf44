"""A teacher made fast says what it said before."""

from __future__ import annotations

import gc
import signal
import sys

import pytest
import torch
import torch.nn.functional as F
from started import SERVER, TIMEOUT
from tiny_network import tiny_model
from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.models import ModelConfig, Segmenter, build_model
from aicsd.teacher.folding import fold_batch_norm
from aicsd.teacher.runtime import start_runtime
from aicsd.types import Runtime, SegOutput

CLASSES = Classes(("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (90, 0, 0)))


def with_statistics(net: nn.Module) -> nn.Module:
    """Batch norms as after a training: not the identity."""
    random = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=random)
    return net.eval().requires_grad_(False)


def model(backbone: str, released_layout: bool = False) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(
        backbone,
        aspp_channels=16,
        decoder_channels=16,
        low_level_channels=8,
        released_layout=released_layout,
    )
    built = build_model(config, CLASSES)
    with_statistics(built)
    return built


def images(count: int, height: int, width: int) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), generator=random, dtype=torch.uint8)


def differ(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize(
    ("backbone", "released_layout"),
    [
        ("resnet18", False),
        ("mobilenetv2_050", False),
        ("mobilenetv2_050", True),
        ("test_efficientnet", False),
    ],
)
def test_folding_keeps_every_map_and_leaves_no_batch_norm(
    backbone: str, released_layout: bool
) -> None:
    net = model(backbone, released_layout).net
    example = torch.rand(1, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    folded = fold_batch_norm(net, example)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with torch.no_grad():
        for size in ((97, 65), (64, 96)):
            x = torch.randn(2, 3, *size)
            ours, theirs = folded(x), net(x)
            assert differ(ours.logits, theirs.logits) < 5e-5
            for name, maps in theirs.features.items():
                assert differ(ours.features[name], maps) < 5e-5, name


class _UsesConvolutionTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.conv(image)
        found: Tensor = F.relu(self.norm(maps)) + maps
        return found


class _SharesConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        maps: Tensor = self.second(self.conv(F.relu(self.first(self.conv(image)))))
        return maps


@pytest.mark.parametrize("kind", [_UsesConvolutionTwice, _SharesConvolution])
def test_what_cannot_be_folded_stays_as_it_is(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = with_statistics(kind())
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(fold_batch_norm(net, x)(x), net(x))


def test_openvino_gives_the_logits_for_any_shape() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    torch.set_num_threads(torch.get_num_threads())
    segmenter = model("test_resnet.r160_in1k")
    look = start_runtime(segmenter, "openvino")
    results: list[SegOutput] = []
    with torch.no_grad():
        for shape in ((2, 64, 64), (1, 81, 48), (2, 64, 64)):
            x = images(*shape).contiguous(memory_format=torch.channels_last)
            results.append(look(x))
            assert differ(results[-1].logits, segmenter(x).logits) < 1e-3
    assert torch.equal(results[0].logits, results[2].logits)
    assert not results[0].features


def test_a_signal_after_two_openvino_models_have_gone() -> None:
    """A process of its own, which a signal on a missing stack would end."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    process = SERVER.Process(target=receive_a_signal)
    process.start()
    process.join(TIMEOUT)
    assert process.exitcode == 0


def receive_a_signal() -> None:
    looks = [start_runtime(tiny_model(), "openvino") for _ in range(2)]
    for number in range(2):
        looks[number](images(1, 32, 32))
    while looks:
        del looks[0]
        gc.collect()
    received: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, _: received.append(number))
    signal.raise_signal(signal.SIGCHLD)
    assert received == [signal.SIGCHLD]


class _TwoMaps(nn.Module):
    """Few operations: each is a part of the program that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8)
        self.classifier = nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor) -> SegOutput:
        maps = F.relu(self.norm(self.first(image)))
        return SegOutput(self.classifier(maps), {"stage1": maps})


def test_compiled_gives_the_logits_and_the_features() -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(with_statistics(_TwoMaps()), CLASSES).eval()
    with torch.no_grad():
        x = images(2, 64, 64)
        found, wanted = start_runtime(segmenter, "compiled")(x), segmenter(x)
    assert set(found.features) == {"stage1"} == set(segmenter.maps) - {"logits"}
    assert differ(found.logits, wanted.logits) < 1e-3
    assert differ(found.features["stage1"], wanted.features["stage1"]) < 1e-3


def test_openvino_missing_or_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = tiny_model()
    runtime: Runtime = "openvino"
    with pytest.raises(UserError, match=r"use eager or compiled"):
        start_runtime(segmenter.to("meta"), runtime)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"pip install 'aicsd\[export\]'"):
        start_runtime(segmenter, runtime)
