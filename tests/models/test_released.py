"""Checkpoints of the released code: the same logits, and what the import tells."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL, RunCli, write_folder
from released_deeplab import DeepLab, random_deeplab
from released_files import checkpoint, hollow
from safetensors import safe_open
from tiny_runs import NO_REPORT, aicsd, distill_command

from aicsd.data import cityscapes, voc
from aicsd.errors import UserError
from aicsd.models import (
    Backbone,
    DeepLabV3Plus,
    ModelConfig,
    Segmenter,
    build_model,
    import_checkpoint,
    load_model,
    resize,
)
from aicsd.models.sources.released import read_checkpoint

SIZES = ((65, 97), (96, 128))
BACKBONES = ("resnet18", "mobilenetv2_100", "resnet101")


def assert_same_logits(net: DeepLab, model: Segmenter, size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = net(image)
        found = resize(model.net(image).logits, size, align_corners=True)
    assert expected.shape == found.shape == (1, 21, *size)
    # the spread over the image, and not the offset of the class, is what matters
    spread = expected.std(dim=(2, 3), keepdim=True)
    assert float(spread.min()) > 0.01
    assert float(((found - expected).abs() / spread).max()) < 1e-4


@pytest.fixture(scope="module", params=BACKBONES)
def imported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DeepLab, Segmenter, str, dict[str, Any]]:
    """A released network, the same imported by the command line, what it printed, its header."""
    path = tmp_path_factory.mktemp(request.param)
    net = random_deeplab(request.param)
    source, out = path / "model_best.pth.tar", path / "teacher.safetensors"
    torch.save(checkpoint(net.state_dict()), source)
    printed = aicsd("import", source, "-o", out)
    model = load_model(out)
    with safe_open(out, framework="pt") as file:
        header = json.loads(file.metadata()["aicsd"])
    source.unlink()
    out.unlink()
    return net, model, printed, header


def test_logits_are_those_of_the_published_network(imported: Any) -> None:
    net, model, _, _ = imported
    assert not model.training
    for size in SIZES:
        assert_same_logits(net, model, size)


def test_what_the_import_tells(imported: Any) -> None:
    net, model, printed, header = imported
    count = sum(parameter.numel() for parameter in net.parameters())
    name = header["architecture"]["backbone"]
    assert f"teacher.safetensors: {name}, 21 classes (background to tvmonitor)" in printed
    assert f"{count / 1e6:.2f} M parameters, epoch 49, best_pred 0.7785\n" in printed
    assert model.num_parameters() == count
    assert model.classes == voc.CLASSES
    assert header["input"]["mean"] == [0.485, 0.456, 0.406]
    assert header["input"]["std"] == [0.229, 0.224, 0.225]
    assert header["info"] == {
        "imported_from": "model_best.pth.tar",
        "epoch": 49,
        "best_pred": 0.7785,
        "left_out": [],
    }


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenetv2_100"])
def test_output_stride_8(tmp_path: Path, backbone: str) -> None:
    net = random_deeplab(backbone, 21, 8)
    torch.save(checkpoint(net.state_dict()), tmp_path / "x.pth.tar")
    model, _ = import_checkpoint(tmp_path / "x.pth.tar", output_stride=8)
    (tmp_path / "x.pth.tar").unlink()
    assert_same_logits(net, model, SIZES[0])
    assert model.origin is not None
    other = build_model(ModelConfig(**{**model.origin.options, "output_stride": 16}), model.classes)
    other.net.load_state_dict(model.net.state_dict())
    with pytest.raises(AssertionError):
        assert_same_logits(net, other.eval(), SIZES[0])


@pytest.mark.parametrize("backbone", ["resnet34", "resnet50"])
def test_further_resnets(tmp_path: Path, backbone: str) -> None:
    torch.save(hollow(backbone), tmp_path / "x.pth")
    header, state = read_checkpoint(tmp_path / "x.pth")
    assert header["architecture"]["backbone"] == backbone
    with torch.device("meta"):
        DeepLabV3Plus(backbone).load_state_dict(state, assign=True)


def test_a_decoder_without_dropout(tmp_path: Path) -> None:
    net = random_deeplab("resnet18", dropout=False)
    torch.save(checkpoint(net.state_dict(), prefix=""), tmp_path / "x.pth.tar")
    assert_same_logits(net, load_model(tmp_path / "x.pth.tar"), SIZES[0])


def test_padding_before_the_expansion_matters_at_the_border_alone() -> None:
    """In the stride-4 map; the deepest one sees the border from everywhere."""
    torch.manual_seed(0)
    published: Any = random_deeplab("mobilenetv2_100").backbone
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        expected, _ = published(image)
    maps = {}
    for pad in (True, False):
        net = DeepLabV3Plus("mobilenetv2_100", released_layout=pad).eval()
        places = dict(zip(net.backbone.state_dict(), published.features.state_dict(), strict=True))
        stored = published.features.state_dict()
        net.backbone.load_state_dict({key: stored[place] for key, place in places.items()})
        with torch.no_grad():
            maps[pad] = net.backbone(image)[0]
    torch.testing.assert_close(maps[True], expected, rtol=1e-4, atol=1e-4)
    inside = (..., slice(3, -3), slice(3, -3))
    torch.testing.assert_close(maps[False][inside], expected[inside], rtol=1e-4, atol=1e-4)
    difference = (maps[False] - expected).abs()
    assert float(difference.max()) > 0.1 * float(expected.std())


def test_padding_is_of_one_family() -> None:
    with pytest.raises(UserError, match="released_layout is for the backbones mobilenetv2"):
        Backbone("resnet10t", released_layout=True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_both_formats_and_both_names_of_numpy(tmp_path: Path, zipped: bool, module: str) -> None:
    path = tmp_path / "x.pth.tar"
    content = checkpoint(hollow(), best_pred=np.float64(0.5))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    rename(path, np.float64(0).__reduce__()[0].__module__, module)
    assert module.encode() in path.read_bytes()
    header, state = read_checkpoint(path)
    assert header["info"]["best_pred"] == 0.5
    assert header["info"]["epoch"] == 49
    assert state["classifier.weight"].shape == (21, 256, 1, 1)


def rename(path: Path, old: str, new: str) -> None:
    """Put another name of equal role into the pickle, zipped or not."""
    if not zipfile.is_zipfile(path):
        path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
        return
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            is_pickle = name.endswith("data.pkl")
            archive.writestr(
                name, content.replace(old.encode(), new.encode()) if is_pickle else content
            )


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (np.float64(0.25), 0.25),
        (np.float32(0.25), 0.25),
        (np.int64(-3), -3),
        (0.25, 0.25),
        (torch.tensor(0.25), 0.25),
        ("none", None),
        (None, None),
    ],
)
def test_numbers_of_any_kind(tmp_path: Path, number: object, expected: float | None) -> None:
    torch.save(checkpoint(hollow(), best_pred=number), tmp_path / "x.pth.tar")
    header, _ = read_checkpoint(tmp_path / "x.pth.tar")
    assert header["info"]["best_pred"] == expected


def test_a_bare_state_dict_and_no_counted_batches(tmp_path: Path, run_cli: RunCli) -> None:
    state = {key: value for key, value in hollow().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "x.pt")
    code, printed, error = run_cli("import", tmp_path / "x.pt", "-o", tmp_path / "x.safetensors")
    assert (code, error) == (0, "")
    assert printed.endswith("16.61 M parameters\n")
    net = load_model(tmp_path / "x.safetensors").net
    assert int(net.get_buffer("aspp.project.1.num_batches_tracked")) == 0


def test_unused_parts_are_left_out_and_named(tmp_path: Path, run_cli: RunCli) -> None:
    more = {"decoder.conv2.weight": torch.zeros(21, 256, 3, 3), "aspp.cbam.fc.bias": torch.ones(2)}
    torch.save(checkpoint({**hollow(), **more}), tmp_path / "x.pth.tar")
    out = tmp_path / "x.safetensors"
    code, _, error = run_cli("import", tmp_path / "x.pth.tar", "-o", out)
    assert code == 0
    assert "left out" in error
    assert all(key in error for key in more)
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["aicsd"])["info"]["left_out"] == sorted(more)


@pytest.mark.parametrize(
    ("count", "names", "palette"),
    [
        (21, voc.CLASSES.names, voc.CLASSES.palette),
        (19, cityscapes.CLASSES.names, cityscapes.CLASSES.palette),
        (3, ("class_0", "class_1", "class_2"), None),
    ],
)
def test_names_of_the_classes(
    tmp_path: Path, count: int, names: tuple[str, ...], palette: tuple[Any, ...] | None
) -> None:
    torch.save(checkpoint(hollow(classes=count)), tmp_path / "x.pth.tar")
    header, _ = read_checkpoint(tmp_path / "x.pth.tar")
    assert tuple(header["classes"]) == names
    colors = [tuple(color) for color in header["palette"]]
    assert len(set(colors)) == count
    assert palette is None or tuple(colors) == palette


def test_names_from_a_file(tmp_path: Path, run_cli: RunCli) -> None:
    torch.save(checkpoint(hollow(classes=3)), tmp_path / "x.pth.tar")
    (tmp_path / "classes.txt").write_text("road 128 64 128\ntraffic light\nsky\n")
    command = ["import", tmp_path / "x.pth.tar", "--classes", tmp_path / "classes.txt", "-o"]
    code, printed, _ = run_cli(*command, tmp_path / "x.safetensors")
    assert code == 0
    assert "3 classes (road to sky)" in printed
    classes = load_model(tmp_path / "x.safetensors").classes
    assert classes.names == ("road", "traffic light", "sky")
    assert classes.palette[0] == (128, 64, 128)
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    code, _, error = run_cli(*command, tmp_path / "y.safetensors")
    assert code == 2
    assert "classes: 2 names for the 3 classes" in error
    assert not (tmp_path / "y.safetensors").exists()


def test_a_checkpoint_is_a_teacher_and_a_model(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", {"train": 4, "val": 2})
    (root / "classes.txt").write_text("\n".join(voc.CLASSES.names))
    net = random_deeplab("resnet18")
    source = tmp_path / "model_best.pth.tar"
    torch.save(checkpoint(net.state_dict()), source)
    flags = ["--data.name", "folder", "--data.root", root]
    aicsd("evaluate", source, *flags, "--json", tmp_path / "direct.json")
    aicsd("import", source, "--out", tmp_path / "t.safetensors")
    aicsd("evaluate", tmp_path / "t.safetensors", *flags, "--json", tmp_path / "imported.json")
    direct = json.loads((tmp_path / "direct.json").read_text())
    assert direct == json.loads((tmp_path / "imported.json").read_text())
    aicsd(*distill_command(root, source, tmp_path / "run", "--epochs", "1", *NO_REPORT))
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["teacher"]["miou"] == pytest.approx(direct["miou"])
    assert str(TINY_MODEL["backbone"]) in (tmp_path / "run" / "config.yaml").read_text()
