"""Every format keeps one contract: what its files compute, describe and refuse."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deploy_programs import bring, bring_photo, program, wanted
from PIL import Image
from tiny_exports import SIZE, Photos, exported, require_libraries
from tiny_network import CLASSES, TinyNetwork, tiny_model
from torch import Tensor, nn

from aicsd.cli.export import run as run_export
from aicsd.commands import ExportResult
from aicsd.errors import UserError
from aicsd.exporting import Parity, check, check_target, export_model
from aicsd.exporting.graph import ExportGraph
from aicsd.exporting.pooling import bin_pool
from aicsd.formats import (
    FORMATS,
    Format,
    coreml,
    executorch,
    find_format,
    litert,
    onnx,
    openvino,
    torch_export,
)
from aicsd.models import load_model
from aicsd.models.input_spec import InputSpec
from aicsd.models.segmenter import Segmenter

every_format = pytest.mark.parametrize("known", FORMATS, ids=lambda known: known.name)
every_int8 = pytest.mark.parametrize(
    "known", [known for known in FORMATS if known.quantize], ids=lambda known: known.name
)
READ = [known for known in FORMATS if known not in (torch_export.FORMAT, coreml.FORMAT)]
every_reader = pytest.mark.parametrize("known", READ, ids=lambda known: known.name)


def photo(height: int = SIZE[0], width: int = SIZE[1], seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_hand(model: Segmenter, image: np.ndarray) -> Tensor:
    """(C, H, W) logits with a normalisation of its own."""
    spec = model.input
    normal = (image * spec.scale - np.array(spec.mean)) / np.array(spec.std)
    normal = normal[..., ::-1] if spec.bgr else normal
    with torch.no_grad():
        logits = model.net(torch.from_numpy(normal.copy()).float().permute(2, 0, 1)[None])
    size = image.shape[:2]
    return F.interpolate(logits, size, mode="bilinear", align_corners=model.align_corners)[0]


@every_format
def test_parity_is_told(known: Format) -> None:
    path, parity = exported(known)
    assert path.exists()
    if known.runs():
        assert parity.error is not None
        assert parity.agreement is not None
        assert 0 <= parity.error < 1e-3
        assert parity.agreement >= 0.999
    else:
        assert parity.error is None
        assert parity.agreement is None


@every_reader
def test_files_compute_what_pytorch_does(known: Format) -> None:
    path, _ = exported(known)
    model, read, image = tiny_model(), load_model(path), photo()
    assert read.classes == model.classes
    assert read.num_parameters() == model.num_parameters()
    found = read(torch.from_numpy(image).permute(2, 0, 1)[None]).logits[0]
    wanted = by_hand(model, image)
    assert (found.argmax(0) == wanted.argmax(0)).float().mean() >= 0.999
    assert (found - wanted).abs().max() <= 1e-3 * (wanted.max() - wanted.min())


def test_torch_files_for_any_size() -> None:
    path, _ = exported(torch_export.FORMAT)
    extra = {"aicsd.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    for count, height, width in ((1, 33, 95), (3, 71, 54), (1, 128, 128)):
        images = np.stack([photo(height, width, seed) for seed in range(count)])
        found = module(torch.from_numpy(images))
        wanted = torch.stack([by_hand(tiny_model(), image) for image in images])
        assert found.shape == wanted.shape
        assert (found.argmax(1) == wanted.argmax(1)).float().mean() >= 0.999
        assert (found - wanted).abs().max() <= 1e-3 * (wanted.max() - wanted.min())
    about = json.loads(extra["aicsd.json"])
    assert (about["classes"], about["output"]) == (list(CLASSES.names), "logits")
    assert {"input", "preprocessing", "result", "mean", "std", "int8", "palette"} <= about.keys()
    with pytest.raises(UserError, match="can execute code"):
        load_model(path)


@pytest.mark.slow
@every_int8
def test_int8_labels(known: Format) -> None:
    """Fused arg max: (1, H, W) uint8 comes out of the file itself."""
    path, _ = exported(known, "labels", True)
    image = photo()
    labels = known.read(path, 1).run(image[None])
    assert labels.dtype == np.uint8
    assert labels.shape == (1, *SIZE)
    wanted = by_hand(tiny_model(), image).argmax(0).numpy()
    assert (labels[0] == wanted).mean() > 0.97
    assert known.bytes(path) < 4 * 40_000


@pytest.mark.slow
@pytest.mark.parametrize("known", [litert.FORMAT, executorch.FORMAT], ids=lambda known: known.name)
def test_the_program_for_phones(
    known: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the program of docs/deploy.md here, where its file is written and PyTorch imported."""
    bring_photo(tmp_path)
    bring(known, tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(program(known.name), {})
    labels = np.asarray(Image.open(tmp_path / "classes.png"))
    assert labels.shape == SIZE
    assert (labels == wanted(tmp_path, SIZE)).mean() > 0.95  # INT8


def test_a_file_of_other_weights_is_refused() -> None:
    path, _ = exported(onnx.FORMAT)
    other = tiny_model(seed=3)
    with pytest.raises(UserError, match="differs from PyTorch"):
        check.compare(ExportGraph(other).eval(), path, onnx.FORMAT, other)


def test_nothing_is_written_when_the_check_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "LARGEST_ERROR", -1.0)
    with pytest.raises(UserError, match="nothing was written"):
        export_model(tiny_model(), tmp_path / "model.pt2", size=SIZE)
    assert not list(tmp_path.iterdir())


def test_int8_that_has_gone_wrong_is_refused(tmp_path: Path) -> None:
    float_file, _ = exported(onnx.FORMAT)
    other = tiny_model()
    with torch.no_grad():
        for parameter in other.net.get_submodule("classifier").parameters():
            parameter.neg_()  # the least likely class becomes the most likely one
    export_model(other, tmp_path / "other.onnx", size=SIZE)
    images = [photo()[None]]
    with pytest.raises(UserError, match="of the labels of the float file"):
        check.compare_int8(float_file, tmp_path / "other.onnx", onnx.FORMAT, iter(images))
    assert check.compare_int8(float_file, float_file, onnx.FORMAT, iter(images)) == 1


def test_litert_int8_of_weights_that_are_not_few(tmp_path: Path) -> None:
    """LiteRT's quantiser keeps large tensors behind the part that the description is added to."""
    known = litert.FORMAT
    require_libraries(known, int8=True)
    torch.manual_seed(1)
    wide = nn.Sequential(nn.Conv2d(3, 96, 3, 2, 1), nn.ReLU(), nn.Conv2d(96, 96, 3, 2, 1),
                         nn.ReLU(), nn.Conv2d(96, 3, 1))  # fmt: skip
    model = Segmenter(wide, CLASSES).eval()
    parity = export_model(model, tmp_path / "a.tflite", "labels", Photos(), SIZE)
    assert parity.int8 is not None
    assert parity.int8 > 0.9
    assert known.read(tmp_path / "a.tflite", 1).parameters > 80_000


@every_reader
def test_images_of_other_sizes(known: Format) -> None:
    """A file of one size gets them resized; one of any size takes them as they are."""
    path, _ = exported(known)
    read, image = load_model(path), photo(70, 101)
    labels = read.predict(image)
    assert labels.shape == (70, 101)
    batch = torch.from_numpy(np.stack([photo(seed=1), photo(seed=2)])).permute(0, 3, 1, 2)
    assert read(batch).logits.shape == (2, 3, *SIZE)
    if not known.one_size:
        assert (labels == by_hand(tiny_model(), image).argmax(0).numpy()).mean() >= 0.999
        return
    resized = F.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], SIZE, mode="bilinear", antialias=True
    )
    logits = by_hand(tiny_model(), resized[0].permute(1, 2, 0).numpy())
    wanted = F.interpolate(logits[None], (70, 101), mode="bilinear")[0].argmax(0).numpy()
    assert (labels == wanted).mean() >= 0.99


@every_reader
@pytest.mark.parametrize("content", [b"", b"no model", bytes(range(256)) * 40])
def test_broken_files_are_one_line(known: Format, content: bytes, tmp_path: Path) -> None:
    require_libraries(known)
    path = tmp_path / f"broken{known.suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a readable exported model") as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_openvino_text_that_is_not_utf8(tmp_path: Path) -> None:
    source, _ = exported(openvino.FORMAT)
    content, path = source.read_bytes(), tmp_path / "a.xml"
    path.with_suffix(".bin").write_bytes(source.with_suffix(".bin").read_bytes())
    for word, other in ((b"ground", b"groun\xff"), (b'"images"', b'"image\xff"')):
        path.write_bytes(content.replace(word, other))
        with pytest.raises(
            UserError, match=r"is not a readable exported model|has a broken description"
        ) as error:
            load_model(path)
        assert "\n" not in str(error.value)


@every_format
def test_target_is_checked_before_the_work(known: Format, tmp_path: Path) -> None:
    require_libraries(known)
    out = tmp_path / f"model{known.suffix}"
    if known.one_size:
        with pytest.raises(UserError, match="images of one size: give --size"):
            check_target(out)
    assert check_target(out, size=SIZE) is known
    if known.quantize is None:
        with pytest.raises(UserError, match=f"not for {known.name}: {known.int8_note}"):
            check_target(out, int8=True, size=SIZE)
    for file in known.files(out):
        file.write_text("mine")
        with pytest.raises(UserError, match=f"{file.name} exists"):
            check_target(out, size=SIZE)
        file.unlink()


@every_format
def test_libraries_that_are_not_installed(
    known: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in known.libraries:
        with monkeypatch.context() as patch:
            for other in known.libraries:
                patch.setitem(sys.modules, other, sys)  # as if installed
            patch.setitem(sys.modules, library, None)
            with pytest.raises(
                UserError, match=rf"{library}: pip install 'aicsd\[{known.extra}\]'"
            ):
                check_target(tmp_path / f"a{known.suffix}", size=SIZE)


def test_endings_in_capitals() -> None:
    assert find_format(Path("model.ONNX")) is onnx.FORMAT


def test_core_ml_off_a_mac(tmp_path: Path) -> None:
    if coreml.FORMAT.runs():
        pytest.skip("this is a Mac, where the model runs")
    path, _ = exported(coreml.FORMAT)
    with pytest.raises(UserError, match="run on macOS only"):
        load_model(path)
    coreml._check_structure(path, {"size": SIZE, "output": "logits", "classes": ["a", "b", "c"]})
    for change in ({"size": (96, 64)}, {"classes": ["a", "b"]}):
        about = {"size": SIZE, "output": "logits", "classes": ["a", "b", "c"], **change}
        with pytest.raises(UserError, match="unlike its description"):
            coreml._check_structure(path, about)


class Awkward(nn.Module):
    """Takes sides that are multiples of 8, at least 40 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = TinyNetwork()

    def forward(self, image: Tensor) -> Tensor:
        torch._check(image.shape[2] % 8 == 0)
        torch._check(image.shape[3] % 8 == 0)
        logits: Tensor = self.net(image)
        return logits


def test_the_export_asks_the_network(tmp_path: Path) -> None:
    """Aligned corners, channel order, scale, multiple and padding are the network's own."""
    require_libraries(onnx.FORMAT)
    torch.manual_seed(5)
    spec = InputSpec((120.0, 90.0, 60.0), (55.0, 60.0, 65.0), scale=1.0, bgr=True, multiple=8)
    model = Segmenter(Awkward(), CLASSES, spec, align_corners=True).eval()
    export_model(model, tmp_path / "a.onnx")
    read = load_model(tmp_path / "a.onnx")
    assert read.align_corners
    image = photo(64, 88)
    wanted = by_hand(model, image)
    found = read(torch.from_numpy(image).permute(2, 0, 1)[None]).logits[0]
    assert (found - wanted).abs().max() <= 1e-3 * (wanted.max() - wanted.min())
    odd = photo(61, 83)  # padded by the mean color, in the file's reader as in PyTorch
    assert (read.predict(odd) == model.predict(odd)).mean() >= 0.999
    with pytest.raises(UserError, match="size is 60x64; the network takes sides of 40 pixels"):
        export_model(model, tmp_path / "b.onnx", size=(64, 60))


@pytest.mark.parametrize("sides", [(1, 1), (4, 7), (6, 6), (13, 5)])
def test_bins_are_those_of_adaptive_pooling(sides: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0))
    for rows, columns in ((2, 3), (6, 6)):
        wanted = F.adaptive_avg_pool2d(maps, (rows, columns))
        assert torch.allclose(bin_pool(maps, rows, columns), wanted, atol=1e-6)


def test_pyramid_pooling_of_images_of_any_size(tmp_path: Path) -> None:
    """As PSPNet and UPerNet have it; the export compares images of several sizes."""

    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.pool = TinyNetwork(), nn.AdaptiveAvgPool2d(3)

        def forward(self, image: Tensor) -> Tensor:
            maps: Tensor = self.net(image)
            return maps + F.interpolate(self.pool(maps), maps.shape[2:])

    require_libraries(onnx.FORMAT)
    parity = export_model(Segmenter(Pyramid(), CLASSES).eval(), tmp_path / "a.onnx")
    assert parity.agreement is not None
    assert parity.agreement >= 0.999
    assert F.adaptive_avg_pool2d.__module__ == "torch.nn.functional"


def test_attention(tmp_path: Path) -> None:
    """The layout of its result is that of products, which stand for it in the file."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.embed, self.head = TinyNetwork(), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)

        def forward(self, image: Tensor) -> Tensor:
            maps = self.embed(self.net(image))
            tokens = maps.flatten(2).transpose(1, 2)  # B N D
            heads = tokens.view(*tokens.shape[:2], 2, 4).transpose(1, 2)
            seen = F.scaled_dot_product_attention(heads, heads, heads)
            mixed = seen.transpose(1, 2).contiguous().view(tokens.shape)
            logits: Tensor = self.head(mixed.transpose(1, 2).reshape(maps.shape))
            return logits

    require_libraries(onnx.FORMAT)
    torch.manual_seed(0)
    model = Segmenter(Attends(), CLASSES).eval()
    parity = export_model(model, tmp_path / "a.onnx", size=(64, 64))
    assert parity.agreement is not None
    assert parity.agreement >= 0.999


def test_a_file_that_its_own_runtime_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: object, path: Path, __: object) -> None:
        path.write_bytes(b"no graph")

    require_libraries(onnx.FORMAT)
    broken = replace(onnx.FORMAT, write=write)
    monkeypatch.setattr("aicsd.exporting.write.check_target", lambda *_, **__: broken)
    words = "ONNX Runtime does not run this network: .*nothing was written. Try another format"
    with pytest.raises(UserError, match=words) as error:
        export_model(tiny_model(), tmp_path / "a.onnx")
    assert str(tmp_path) not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_network_that_no_format_can_express(tmp_path: Path) -> None:
    class Counts(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image * float(image.sum())

    with pytest.raises(UserError, match=r"cannot be exported for torch\.export") as error:
        export_model(Segmenter(Counts(), CLASSES).eval(), tmp_path / "a.pt2")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_int8_on_images_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")
    done = ExportResult(
        path, FORMATS[0], None, Parity(1e-6, 1.0, 0.97), "3 images of train", 2, math.nan, math.nan
    )
    monkeypatch.setattr("aicsd.cli.export.export", lambda **_: done)
    assert run_export(int8=True) == 0
    told = capsys.readouterr().out
    assert "97.0% of the labels of float: no label in 2 images, so no mIoU" in told
    assert "nan" not in told
