"""aicsd predict on files, folders and patterns."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RunCli
from PIL import Image
from tiny_models import CLASSES, noise, save_tiny_model

from aicsd.errors import UserError
from aicsd.evaluation import InferenceConfig
from aicsd.files import atomic_folder
from aicsd.models import Segmenter, load_model, resize
from aicsd.models.bands import class_probabilities, probability_bands
from aicsd.prediction import PredictConfig, find_inputs, predict_files
from aicsd.visualization import colorize, overlay

SIZES = {
    "a/x.png": (64, 48),
    "a/y.jpg": (64, 48),
    "a/deep/x.png": (50, 70),
    "b/x.png": (64, 48),
    "b/z.bmp": (64, 48),
    "b/wide.png": (90, 40),
}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def model(model_file: Path) -> Segmenter:
    return load_model(model_file)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images of ``SIZES`` in the working folder."""
    monkeypatch.chdir(tmp_path)
    for seed, (name, size) in enumerate(SIZES.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(*size, seed)).save(tmp_path / name)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def read_ids(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.array(file)


def test_outputs(model_file: Path, model: Segmenter, photos: Path, run_cli: RunCli) -> None:
    code, printed, error = run_cli(
        "predict",
        model_file,
        "a/x.png",
        "a/y.jpg",
        "--out",
        "out",
        "--outputs",
        "ids, overlay,color,probabilities,ids",
    )
    assert code == 0, error
    assert printed.startswith("2 images (")
    assert "images/s): results in out" in printed
    ends = (".png", "_overlay.png", "_color.png", "_probabilities.npy")
    assert names(photos / "out") == {f"{stem}{end}" for stem in "xy" for end in ends}
    image = read_ids(photos / "a/x.png")
    ids = read_ids(photos / "out/x.png")
    assert len(np.unique(ids)) == 3
    assert np.array_equal(ids, model.predict(image))
    assert np.array_equal(read_ids(photos / "out/x_color.png"), colorize(ids, CLASSES.palette))
    shown = read_ids(photos / "out/x_overlay.png")
    assert np.array_equal(shown, overlay(image, ids, CLASSES.palette))
    probabilities = np.load(photos / "out/x_probabilities.npy", allow_pickle=False)
    assert probabilities.dtype == np.float16
    with torch.no_grad():
        logits = model(torch.from_numpy(image).permute(2, 0, 1)[None]).logits
    wanted = resize(logits, (48, 64), align_corners=True).softmax(dim=1)[0].numpy()
    assert np.allclose(probabilities, wanted, atol=1e-3)


@pytest.mark.parametrize("more", [[], ["--window", "32", "--flip", "true"]])
def test_nothing_depends_on_batches_and_workers(
    model_file: Path, photos: Path, run_cli: RunCli, more: list[str]
) -> None:
    for number in range(5):  # the third batch is not full
        Image.fromarray(noise(64, 48, 10 + number)).save(photos / "b" / f"{number}.png")
    wanted: dict[str, bytes] | None = None
    for batch_size, workers in ((1, 0), (2, 3), (3, 0), (50, 1)):
        out = photos / f"{batch_size}-{workers}"
        code, printed, error = run_cli(
            "predict", model_file, "b", "a/y.jpg", "b/x.png", "--out", out,
            "--batch_size", batch_size, "--workers", workers, "--outputs", "ids,color", *more,
        )  # fmt: skip
        assert code == 0, error
        assert printed.startswith("9 images")
        files = {name: (out / name).read_bytes() for name in names(out)}
        assert len(files) == 18
        wanted = wanted or files
        assert files == wanted


def test_folders_keep_names_apart(model_file: Path, photos: Path, run_cli: RunCli) -> None:
    command = ["predict", model_file, "--outputs", "ids"]
    flat = run_cli(*command, "a", "--out", "flat")
    assert flat[0] == 0, flat
    assert names(photos / "flat") == {"x.png", "y.png"}
    deep = run_cli(*command, ".", "--recursive", "true", "--out", "deep")
    assert deep[0] == 0, deep
    every = {str(Path(name).with_suffix(".png")) for name in SIZES}
    assert names(photos / "deep") == every | {"flat/x.png", "flat/y.png"}
    # what the folder of the results holds is no input
    again = run_cli(*command, ".", "--recursive", "true", "--out", "deep")
    assert again[0] == 0, again
    assert names(photos / "deep") == every | {"flat/x.png", "flat/y.png"}


def test_patterns(photos: Path) -> None:
    (photos / "a" / "notes.txt").write_text("not an image")

    def found(*places: str) -> dict[str, str]:
        return {str(item.path): str(item.name) for item in find_inputs(places)}

    assert found("a/*") == {"a/x.png": "x", "a/y.jpg": "y"}
    assert found("*/x.png") == {"a/x.png": "a/x", "b/x.png": "b/x"}
    assert found(str(photos / "**" / "x.*")) == {
        str(photos / name): name.removesuffix(".png")
        for name in ("a/deep/x.png", "a/x.png", "b/x.png")
    }
    assert list(found("b/z.bmp", "b/[x-z]*")) == ["b/z.bmp", "b/x.png"]
    (photos / "a[1].png").write_bytes((photos / "a/x.png").read_bytes())
    assert found("a[1].png") == {"a[1].png": "a[1]"}  # a file of that name is no pattern
    with pytest.raises(UserError, match=r"no image or video matches nowhere/\*.png"):
        find_inputs(["nowhere/*.png"])
    (photos / "c" / "d").mkdir(parents=True)
    shutil.copy("a/x.png", "c/d")
    with pytest.raises(UserError, match=r"no images in c .*--recursive"):
        find_inputs(["c"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("a/x.png b/x.png", ["a/x.png and b/x.png", "x.png", "different folders"]),
        ("a/y.jpg a/y.png", ["a/y.jpg and a/y.png", "different folders"]),
        ("a --out a --outputs color,ids", ["a/x.png is an image", "another folder"]),
        ("a --outputs ids,overlays", ["unknown output 'overlays'", "'overlay'"]),
        ("a --outputs ,", ["outputs is empty"]),
        ("a --batch_size 0", ["batch_size is 0"]),
        ("a --workers -1", ["workers is -1"]),
        ("- --out out", ["--out -"]),
    ],
)
def test_refused(
    model_file: Path, photos: Path, run_cli: RunCli, arguments: str, words: list[str]
) -> None:
    shutil.copy("a/x.png", "a/y.png")
    before = names(photos)
    places = arguments.split()
    code, printed, error = run_cli(
        "predict", model_file, *(places if "--out" in places else [*places, "--out", "out"])
    )
    assert code == 2
    assert not printed
    assert error.startswith("aicsd: error: ")
    assert error.count("\n") == 1
    assert all(word in error for word in words), error
    assert names(photos) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_does_not_stop_the_others(
    model_file: Path, photos: Path, run_cli: RunCli, workers: int
) -> None:
    whole = (photos / "b/x.png").read_bytes()
    (photos / "b/half.png").write_bytes(whole[: len(whole) // 4])
    (photos / "b/a.png").write_text("not an image")
    code, printed, error = run_cli(
        "predict", model_file, "b", "--out", "out", "--workers", workers, "--batch_size", 2
    )
    assert code == 2
    assert printed.startswith("3 images")
    lines = sorted(error.splitlines())
    assert [line.split(" is ")[0] for line in lines] == [
        "aicsd: error: b/a.png",
        "aicsd: error: b/half.png",
    ]
    assert names(photos / "out") == {
        f"{stem}{end}.png" for stem in ("x", "z", "wide") for end in ("", "_overlay")
    }


def test_reading_is_ahead_by_a_bounded_number(
    model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few of many images are in memory at a time, even if no two have one size."""
    read = []

    def decode(path: Path) -> np.ndarray:
        read.append(path)
        return noise(32 + len(read), 32)

    monkeypatch.setattr("aicsd.prediction.files.read_image", decode)
    for index in range(60):
        (tmp_path / f"{index:02}.png").touch()
    config = PredictConfig(("ids",), batch_size=2, workers=1)
    done = predict_files(model, find_inputs([str(tmp_path)]), tmp_path / "out", config)
    for count, _ in enumerate(done, 1):
        assert len(read) - count <= 4 * 2 + (1 + 2) + 1 + 1
    assert count == 60


@pytest.mark.parametrize(("height", "width"), [(200, 150), (97, 33), (150, 40)])
@pytest.mark.parametrize("flip", [False, True])
def test_bands_are_the_whole(model: Segmenter, height: int, width: int, flip: bool) -> None:
    image = torch.from_numpy(noise(width, height)).permute(2, 0, 1)[None]
    config = InferenceConfig(window=48, overlap=0.6, flip=flip)
    whole = class_probabilities(model, image, config)
    assert torch.allclose(whole.sum(dim=1), torch.ones(1, height, width), atol=1e-5)
    row = 0
    for top, band in probability_bands(model, image, config):
        assert top == row
        assert band.shape[2] <= 48
        assert torch.allclose(band, whole[:, :, top : top + band.shape[2]], atol=1e-5)
        row += band.shape[2]
    assert row == height


def test_large_image(model_file: Path, photos: Path, run_cli: RunCli, model: Segmenter) -> None:
    Image.fromarray(noise(130, 180, 5)).save("large.png")
    flags = ["--window", "48", "--outputs", "ids,probabilities"]
    code, _, error = run_cli("predict", model_file, "large.png", "--out", "out", *flags)
    assert code == 0, error
    image = torch.from_numpy(noise(130, 180, 5)).permute(2, 0, 1)[None]
    wanted = class_probabilities(model, image, InferenceConfig(window=48))[0]
    ids = read_ids(photos / "out/large.png")
    assert len(np.unique(ids)) > 1
    assert np.array_equal(ids, wanted.argmax(dim=0).numpy())
    assert np.allclose(np.load("out/large_probabilities.npy"), wanted.numpy(), atol=1e-3)


def test_too_little_memory_is_said_and_the_others_are_predicted(
    model: Segmenter, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(*arguments: object) -> object:
        monkeypatch.undo()
        monkeypatch.chdir(photos)
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("aicsd.prediction.network.infer", fail_once)
    inputs = find_inputs(["a/x.png", "b/x.png"])
    config = PredictConfig(workers=0)
    failed, done = predict_files(model, inputs, photos / "out", config)
    assert failed.error is not None
    assert re.match(r"a/x.png: not enough memory for 1 x 64x48 pixels.*--window", failed.error)
    assert (done.path, done.images) == (Path("b/x.png"), 1)


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    with pytest.raises(UserError), atomic_folder(tmp_path / "x") as folder:  # noqa: PT012
        (folder / "half.png").touch()
        raise UserError("on the way")
    assert not list(tmp_path.iterdir())
    with atomic_folder(tmp_path / "y") as folder:
        (folder / "whole.png").touch()
    assert names(tmp_path) == {"y/whole.png"}


def test_links_to_one_file_are_several_images(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    Image.fromarray(noise(20, 30)).save(store / "aa.png")
    links = tmp_path / "links"
    links.mkdir()
    for number in range(3):
        (links / f"{number}.png").symlink_to(store / "aa.png")
    (links / "._0.png").write_bytes(b"x")
    (links / "deep").mkdir()
    (links / "deep" / "._1.png").write_bytes(b"x")
    for recursive in (False, True):
        found = [str(item.name) for item in find_inputs([str(links)], recursive)]
        assert found == ["0", "1", "2"]
    assert len(find_inputs([str(links / f"{number}.png") for number in (0, 1, 0)])) == 2


def test_results_do_not_become_images(model_file: Path, photos: Path, run_cli: RunCli) -> None:
    (photos / "c").mkdir()
    (photos / "a/y.jpg").rename(photos / "c/y.jpg")
    for place in ("c", "c/y.jpg"):
        code, _, error = run_cli("predict", model_file, photos / place, "--out", photos / "c")
        assert (code, error.count("\n")) == (2, 1)
        assert "would be among the images, and be used as one of them later" in error
    assert names(photos / "c") == {"y.jpg"}
    assert run_cli("predict", model_file, photos / "c", "--out", photos / "c" / "results")[0] == 0
