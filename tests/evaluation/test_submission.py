"""Archives for the benchmark servers: what is in them, and what is refused."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from conftest import RunCli
from PIL import Image

from aicsd.data import DATASETS, cityscapes, voc
from aicsd.data.entry import Server
from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.evaluation.submission import check_archive, write_submission
from aicsd.images import UInt8Array
from aicsd.models import ModelConfig, build_model, save_model

# (width, height): landscape, portrait, one row
SIZES = {"2008_000001": (50, 37), "2008_000006": (33, 61), "2008_000011": (9, 1)}
CITIES = {"berlin_000000_000019": (64, 32), "bonn_000003_000019": (64, 32)}


def write_image(path: Path, size: tuple[int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def server(dataset: str) -> Server:
    found = DATASETS[dataset].server
    assert found is not None
    return found


def content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    found = archive.extractfile(member)
    assert found is not None
    return found


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """The test split of VOC: images and a list, no masks."""
    devkit = tmp_path / "voc" / "VOCdevkit" / "VOC2012"
    for name, size in SIZES.items():
        write_image(devkit / "JPEGImages" / f"{name}.jpg", size)
    listing = devkit / "ImageSets" / "Segmentation" / "test.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("\n".join(SIZES) + "\n")
    return tmp_path / "voc"


@pytest.fixture
def cityscapes_root(tmp_path: Path) -> Path:
    root = tmp_path / "cityscapes"
    for name, size in CITIES.items():
        city = name.split("_")[0]
        write_image(root / "leftImg8bit" / "test" / city / f"{name}_leftImg8bit.png", size)
    return root


def save_random(classes: Classes, path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig("test_resnet", aspp_channels=8, decoder_channels=8, low_level_channels=8)
    model = build_model(config, classes)
    # large, so that a tiny untrained network predicts more than one class
    torch.nn.init.normal_(model.net.get_parameter("classifier.weight"), std=5.0)
    save_model(model, path)
    return path


def test_voc_archive(voc_root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    model = save_random(voc.CLASSES, tmp_path / "m.safetensors")
    out = tmp_path / "results.tgz"
    arguments = ("submit", model, "--data.name", "voc", "--data.root", voc_root, "-o")
    code, printed, _ = run_cli(*arguments, out)
    assert code == 0
    assert "3 predictions" in printed
    predicted = set()
    with tarfile.open(out, "r:gz") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in SIZES
        ]
        assert all(member.isfile() for member in members)
        for member, size in zip(members, SIZES.values(), strict=True):
            picture = Image.open(content_of(archive, member))
            assert (picture.format, picture.mode, picture.size) == ("PNG", "P", size)
            assert (picture.getpalette() or [])[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
            predicted |= set(np.unique(np.array(picture)))
    assert len(predicted) > 1
    assert predicted <= set(range(21))
    again = tmp_path / "again.tgz"
    assert run_cli(*arguments, again)[0] == 0
    assert again.read_bytes() == out.read_bytes()


def test_cityscapes_archive(cityscapes_root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    model = save_random(cityscapes.CLASSES, tmp_path / "m.safetensors")
    out = tmp_path / "results.zip"
    code, _, _ = run_cli(
        "submit", model, "--data.name", "cityscapes", "--data.root", cityscapes_root, "-o", out
    )
    assert code == 0
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == [f"{name}_pred_labelIds.png" for name in CITIES]
        for name, size in CITIES.items():
            content = archive.read(f"{name}_pred_labelIds.png")
            picture = Image.open(io.BytesIO(content))
            assert (picture.mode, picture.size) == ("L", size)
            assert set(np.unique(np.array(picture))) <= set(cityscapes.LABEL_IDS)


def test_class_ids_become_label_ids(cityscapes_root: Path, tmp_path: Path) -> None:
    images = sorted(cityscapes_root.rglob("*.png"))

    def predict(image: UInt8Array) -> UInt8Array:
        """All classes in turn."""
        return (np.arange(image.shape[0] * image.shape[1]) % 19).reshape(image.shape[:2])

    out = tmp_path / "r.zip"
    write_submission(server("cityscapes"), images, "test", predict, out)
    with zipfile.ZipFile(out) as archive:
        ids = np.array(Image.open(io.BytesIO(archive.read(archive.namelist()[0]))))
    official = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert ids.ravel()[:19].tolist() == official


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("camvid", "r.tgz", "no benchmark server"),
        ("voc", "r.zip", "must end in .tgz"),
        ("cityscapes", "r.zip", "was trained on the classes"),
    ],
)
def test_refused_before_anything_is_predicted(
    voc_root: Path, tmp_path: Path, run_cli: RunCli, name: str, out: str, message: str
) -> None:
    model = save_random(voc.CLASSES, tmp_path / "m.safetensors")
    code, _, error = run_cli(
        "submit", model, "--data.name", name, "--data.root", voc_root, "-o", tmp_path / out
    )
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / out).exists()


def test_a_broken_image_leaves_no_archive(voc_root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    model = save_random(voc.CLASSES, tmp_path / "m.safetensors")
    broken = voc_root / "VOCdevkit" / "VOC2012" / "JPEGImages" / "2008_000006.jpg"
    broken.write_bytes(b"no image")
    out = tmp_path / "out" / "r.tgz"
    code, _, error = run_cli(
        "submit", model, "--data.name", "voc", "--data.root", voc_root, "-o", out
    )
    assert code == 2
    assert "2008_000006.jpg" in error
    assert list(out.parent.iterdir()) == []


def test_two_images_of_one_name_are_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    images = [write_image(tmp_path / place / "x_leftImg8bit.png", (4, 3)) for place in "ab"]

    def predict(image: UInt8Array) -> UInt8Array:
        raise AssertionError("a prediction")

    with pytest.raises(UserError, match="would both become x_pred_labelIds"):
        write_submission(server("cityscapes"), images, "test", predict, tmp_path / "r.zip")
    assert not (tmp_path / "r.zip").exists()


def test_inference_options_reach_the_archive(
    voc_root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    model = save_random(voc.CLASSES, tmp_path / "m.safetensors")
    options = ("--scales", "0.75,1.0", "--flip", "true", "--window", 32)
    on_data = ("--data.name", "voc", "--data.root", voc_root)
    out = tmp_path / "r.tgz"
    assert run_cli("submit", model, *on_data, "-o", out, *options)[0] == 0
    images = voc_root / "VOCdevkit" / "VOC2012" / "JPEGImages"
    assert run_cli("predict", model, images, "--out", tmp_path / "p", *options)[0] == 0
    assert run_cli("predict", model, images, "--out", tmp_path / "plain")[0] == 0
    differs = False
    with tarfile.open(out) as archive:
        for member in archive:
            name = Path(member.name).name
            found = np.array(Image.open(content_of(archive, member)))
            assert np.array_equal(found, np.array(Image.open(tmp_path / "p" / name)))
            differs |= not np.array_equal(found, np.array(Image.open(tmp_path / "plain" / name)))
    assert differs


def png(ids: np.ndarray, mode: str = "P") -> bytes:
    picture = Image.fromarray(ids.astype(np.uint8))
    if mode == "P":
        picture.putpalette([0] * 768)
    buffer = io.BytesIO()
    picture.convert(mode).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("names", "content", "message"),
    [
        ([], png(np.zeros((2, 3))), "no prediction"),
        (["a", "a"], png(np.zeros((2, 3))), "twice"),
        (["b"], png(np.zeros((2, 3))), "belongs to no image"),
        (["a"], png(np.zeros((3, 2))), "of 2x3; it must be PNG P of 3x2"),
        (["a"], png(np.zeros((2, 3)), "L"), "PNG L"),
        (["a"], png(np.full((2, 3), 21)), "holds id 21"),
        (["a"], b"text", "not a readable image"),
    ],
)
def test_the_check_finds(tmp_path: Path, names: list[str], content: bytes, message: str) -> None:
    image = write_image(tmp_path / "a.jpg", (3, 2))
    path = tmp_path / "r.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(UserError, match=message):
        check_archive(server("voc"), [image], "test", path)
