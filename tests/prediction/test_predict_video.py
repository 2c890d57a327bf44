"""aicsd predict on videos that the tests make themselves."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli
from PIL import Image
from tiny_models import CLASSES, VIDEO_RATE, make_video, save_tiny_model

from aicsd.models import load_model
from aicsd.visualization import colorize, overlay

av = pytest.importorskip("av", reason="PyAV is not installed")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors")


def read_video(path: Path) -> tuple[list[np.ndarray], list[float], Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        return (
            [frame.to_ndarray(format="rgb24") for frame in decoded],
            [float(frame.time) for frame in decoded],
            stream.average_rate,
        )


def test_video(model_file: Path, tmp_path: Path, run_cli: RunCli) -> None:
    frames = make_video(tmp_path / "drive.mkv", (64, 48), list(range(7)))
    read, _, rate = read_video(tmp_path / "drive.mkv")
    assert all(np.array_equal(*pair) for pair in zip(read, frames, strict=True))
    Image.fromarray(frames[0]).save(tmp_path / "still.png")
    model = load_model(model_file)
    wanted = [model.predict(image) for image in frames]
    results = []
    for batch_size, workers in ((1, 0), (3, 2)):
        out = tmp_path / f"{batch_size}"
        code, printed, error = run_cli(
            "predict", model_file, tmp_path / "drive.mkv", tmp_path / "still.png", "--out", out,
            "--outputs", "overlay,ids,color", "--batch_size", batch_size, "--workers", workers,
        )  # fmt: skip
        assert code == 0, error
        assert printed.startswith("8 images (")
        assert {path.name for path in out.iterdir()} == {
            "drive",
            "drive_overlay.mp4",
            "drive_color.mp4",
            "still.png",
            "still_overlay.png",
            "still_color.png",
        }
        written = sorted((out / "drive").iterdir())
        assert [path.name for path in written] == [f"{number:06}.png" for number in range(7)]
        for path, ids in zip(written, wanted, strict=True):
            assert np.array_equal(np.array(Image.open(path)), ids)
        for kind in ("overlay", "color"):
            shown, times, new_rate = read_video(out / f"drive_{kind}.mp4")
            assert new_rate == rate == VIDEO_RATE
            assert np.allclose(times, np.arange(7) / float(VIDEO_RATE), atol=1e-3)
            for picture, image, ids in zip(shown, frames, wanted, strict=True):
                should = colorize(ids, CLASSES.palette)
                if kind == "overlay":
                    should = overlay(image, ids, CLASSES.palette)
                # colours have half the resolution, which noise feels; another picture is far off
                error = np.abs(picture.astype(int) - should).mean()
                assert error < 18 < np.abs(picture.astype(int) - should[::-1, ::-1]).mean()
            results.append(shown)
    assert all(np.array_equal(*pair) for pair in zip(results[0], results[2], strict=True))
    # frames of another prediction are not mixed with these
    code, _, error = run_cli(
        "predict", model_file, tmp_path / "drive.mkv", "--out", out, "--outputs", "ids"
    )
    assert code == 2
    assert f"{out / 'drive'} exists" in error


def test_without_outputs_a_video_gives_its_overlay(
    model_file: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    """A video with an odd size, and frames that are not evenly spaced."""
    make_video(tmp_path / "odd.mkv", (51, 33), [0, 1, 4, 5])
    out = tmp_path / "out"
    code, _, error = run_cli("predict", model_file, tmp_path / "odd.mkv", "--out", out)
    assert code == 0, error
    assert [path.name for path in out.iterdir()] == ["odd_overlay.mp4"]
    shown, times, _ = read_video(out / "odd_overlay.mp4")
    assert shown[0].shape == (34, 52, 3)
    assert np.allclose(times, np.array([0, 1, 4, 5]) / float(VIDEO_RATE), atol=2e-3)


def test_a_broken_video_leaves_nothing_behind(
    model_file: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    make_video(tmp_path / "good.mkv", (64, 48), [0, 1])
    (tmp_path / "bad.mp4").write_text("not a video")
    out = tmp_path / "out"
    code, printed, error = run_cli(
        "predict", model_file, tmp_path / "*.m*", "--out", out, "--outputs", "ids,overlay"
    )
    assert code == 2
    assert error.startswith(f"aicsd: error: {tmp_path / 'bad.mp4'} is not a readable video: ")
    assert error.count("\n") == 1
    assert printed.startswith("2 images (")
    assert {path.name for path in out.iterdir()} == {"good", "good_overlay.mp4"}


@pytest.mark.parametrize(
    ("out", "flags", "words"),
    [
        ("out", ["--outputs", "probabilities"], "no probabilities of a video"),
        ("-", [], "--out DIR"),
    ],
)
def test_refused(
    model_file: Path, tmp_path: Path, run_cli: RunCli, out: str, flags: list[str], words: str
) -> None:
    make_video(tmp_path / "x.mkv", (64, 48), [0])
    place = out if out == "-" else tmp_path / out
    code, printed, error = run_cli(
        "predict", model_file, tmp_path / "x.mkv", "--out", place, *flags
    )
    assert (code, printed) == (2, "")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_pyav(
    model_file: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_video(tmp_path / "x.mkv", (64, 48), [0])
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, error = run_cli("predict", model_file, tmp_path / "x.mkv", "--out", tmp_path / "out")
    assert code == 2
    assert error == "aicsd: error: videos need PyAV: pip install 'aicsd[video]'\n"
