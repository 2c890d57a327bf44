"""Photos without masks: alone, and mixed into images that have labels."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import CLASS_NAMES, RunCli, write_folder
from PIL import Image
from tiny_models import make_video, noise, save_tiny_model
from tiny_runs import FIT_FLAGS, NO_REPORT, distill_command, model_flags, same_weights

from aicsd.data import frames, open_dataset
from aicsd.data.batches import batch_names, epoch_indices, plan_batches
from aicsd.data.loaders import train_loader
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.data.splits import open_splits
from aicsd.errors import UserError
from aicsd.models import load_model


def write_photos(folder: Path, count: int) -> Path:
    """Photos in a folder and one below it, beside files that are none."""
    (folder / "more").mkdir(parents=True)
    for number in range(count):
        place = folder / "more" if number % 3 == 0 else folder
        Image.fromarray(noise(64, 48, number)).save(place / f"{number:03}.png")
    (folder / "._000.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def write_names(path: Path) -> Path:
    path.write_text("\n".join(CLASS_NAMES) + "\n")
    return path


def mixed(tmp_path: Path, **settings: Any) -> DataConfig:
    root = tmp_path / "data"
    if not root.exists():
        write_folder(root, {"train": 4, "val": 2})
        write_photos(tmp_path / "photos", 10)
    photos = str(tmp_path / "photos")
    augment = AugmentConfig(crop=32)
    return DataConfig(
        root=str(root), unlabelled=photos, batch_size=3, workers=0, augment=augment, **settings
    )


def test_every_photo_is_in_one_split(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 23)
    shutil.copy(photos / "001.png", photos / "001.webp")
    write_names(photos / "classes.txt")
    train, val, everything = (
        open_dataset("photos", str(photos), split) for split in ("train", "val", "all")
    )
    assert (len(train), len(val), len(everything)) == (22, 2, 24)
    assert sorted([*train.names, *val.names]) == sorted(everything.names)
    assert {"more/000", "001.png", "001.webp", "002"} <= set(everything.names)
    assert everything.classes.names == CLASS_NAMES
    assert not len(everything.labelled)
    assert np.unique(train.read(0).mask).tolist() == [255]


def test_photos_take_turns_beside_labelled_images(tmp_path: Path) -> None:
    config = mixed(tmp_path, unlabelled_ratio=1.5, labelled_repeat=2)
    data = open_splits(config)[0].train
    assert len(data) == 14
    assert list(data.labelled) == [0, 1, 2, 3]
    epochs = [epoch_indices(data, config, seed=3, epoch=epoch) for epoch in range(5)]
    for shown in epochs:  # 4 images twice, and 1.5 photos for each of the 8 views
        counts = Counter(shown)
        assert all(counts[index] == 2 for index in range(4))
        assert len(shown) == 8 + 12
    turns = Counter(index for shown in epochs for index in shown if index >= 4)
    assert sum(turns.values()) == 60
    assert set(turns.values()) == {6}  # 10 photos, 60 places: none is ahead of another
    assert epoch_indices(data, config, seed=4, epoch=0) != epochs[0]


def test_without_a_ratio_each_photo_is_shown_once(tmp_path: Path) -> None:
    config = mixed(tmp_path)
    data = open_splits(config)[0].train
    assert sorted(epoch_indices(data, config, epoch=7)) == list(range(14))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stream_is_the_same_for_any_number_of_workers(tmp_path: Path, workers: int) -> None:
    config = mixed(tmp_path, unlabelled_ratio=0.5)
    data = open_splits(config)[0].train
    plan = plan_batches(len(epoch_indices(data, config)), config, seed=1, epochs=3)
    other = DataConfig(**{**config.__dict__, "workers": workers})
    streams = [list(islice(train_loader(data, each, plan), 6)) for each in (config, other)]
    for one, two in zip(*streams, strict=True):
        assert torch.equal(one.image, two.image)
        assert torch.equal(one.mask, two.mask)
    names = [name for batch in batch_names(data, config, plan) for name in batch]
    hidden = [bool((mask == 255).all()) for batch in streams[0] for mask in batch.mask]
    assert hidden == [name.startswith("unlabelled/") for name in names]


def test_photos_beside_a_dataset(tmp_path: Path, run_cli: RunCli) -> None:
    mixed(tmp_path)
    teacher = save_tiny_model(tmp_path / "teacher.safetensors")
    flags = ("--data.unlabelled", tmp_path / "photos", "--data.unlabelled_ratio", "2",
             "--method", "kd", "--epochs", "2", *NO_REPORT)  # fmt: skip
    runs = [tmp_path / name for name in ("live", "cached")]
    for run, more in zip(runs, ((), ("--teacher_cache", tmp_path / "cache")), strict=True):
        code, _, error = run_cli(*distill_command(tmp_path / "data", teacher, run, *flags, *more))
        assert code == 0, error
    lines = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 6  # (4 + 8) / 4 batches, twice


def test_photos_alone(tmp_path: Path, run_cli: RunCli) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    names = write_names(tmp_path / "names.txt")
    teacher = save_tiny_model(tmp_path / "teacher.safetensors")
    run, again = tmp_path / "run", tmp_path / "again"
    command = ["distill", *FIT_FLAGS, *model_flags("student"), "--data.images", photos,
               "--data.classes", names, "--data.batch_size", "4", "--teacher", teacher,
               "--logger", "none", "--epochs", "3", "--method", "kd",
               "--report_images", "1"]  # fmt: skip
    code, _, error = run_cli(*command, "--run", run)
    assert code == 0, error
    assert "no image has labels: mIoU is the agreement with the teacher on 1 images" in error
    result = json.loads((run / "metrics.json").read_text())
    assert result["labels"] == "teacher"
    assert 0 <= result["miou"] < 1
    assert result["teacher"]["miou"] == 1.0  # it agrees with itself
    assert load_model(run).classes.names == CLASS_NAMES
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert (config["name"], config["root"], config["images"]) == ("photos", str(photos), None)
    assert config["options"] == {"classes": str(names)}
    assert "no report" not in error
    # repeated from its config alone
    code, _, error = run_cli("distill", "--config", run / "config.yaml", "--run", again, *NO_REPORT)
    assert code == 0, error
    assert same_weights(run, again)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--data.classes", "x"], ["data.classes goes with data.images"]),
        (["--data.images", "photos", "--data.root", "data"], ["data.images", "data.root", "one"]),
        (["--data.images", "photos", "--data.name", "voc"], ["data.images", "'voc'"]),
        (["--data.images", "nowhere"], ["data.root: no folder nowhere"]),
        (["--data.images", "photos"], ["classes.txt"]),
        (["--data.images", "data"], ["no images in data"]),
        (["--data.images", "films"], ["no images in films", "give the file: films/a.mp4"]),
        (["--data.images", "films/a.mp4"], ["films/a.mp4 is not a readable video"]),
        (["--data.images", "films/b.mp4"], ["no folder films/b.mp4"]),
        (["--data.unlabelled", "nowhere", "--data.root", "sound"], ["data.unlabelled", "nowhere"]),
        (["--data.unlabelled", "broken", "--data.root", "sound"], ["data.unlabelled", "bad.png"]),
        (["--data.unlabelled_ratio", "-1"], ["data.unlabelled_ratio is -1", "0 or more"]),
    ],
    ids=lambda value: "-".join(value)[:40],
)
def test_errors(
    flags: list[str],
    expected: list[str],
    tmp_path: Path,
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 3)
    write_folder(tmp_path / "sound", {"train": 4, "val": 2})
    for name in ("data", "films", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "films" / "a.mp4").touch()
    (tmp_path / "broken" / "bad.png").write_bytes(b"no image")
    teacher = save_tiny_model(tmp_path / "teacher.safetensors")
    code, output, error = run_cli(
        "distill", *FIT_FLAGS, *model_flags("student"), *flags, "--teacher", teacher, "--run", "run"
    )
    assert (code, output) == (2, "")
    assert error.count("\n") == 1
    for part in expected:
        assert part in error
    assert not (tmp_path / "run").exists()


def test_a_video_in_place_of_photos(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    video = tmp_path / "drive.mkv"
    make_video(video, (64, 48), list(range(13)))
    monkeypatch.setattr(frames, "MOST_FRAMES", 5)
    names = write_names(tmp_path / "names.txt")
    teacher = save_tiny_model(tmp_path / "teacher.safetensors")
    command = ["distill", *FIT_FLAGS, *model_flags("student"), "--data.images", video,
               "--data.classes", names, "--data.batch_size", "2", "--teacher", teacher,
               "--method", "kd", *NO_REPORT, "--run", tmp_path / "run"]  # fmt: skip
    code, _, error = run_cli(*command)
    assert code == 0, error
    assert f"extracting the frames of {video}" in error
    folder = tmp_path / "drive.mkv.frames"
    # every fourth of 13: never more than 5
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == [f"{number:06}.jpg" for number in (0, 4, 8, 12)]
    again = open_dataset("photos", str(video), "all", {"classes": str(names)})
    assert list(again.names) == [Path(name).stem for name in kept]
    photo = again.read(1).image.astype(int)
    assert photo.shape == (48, 64, 3)
    # noise through a JPEG: nearest to its own frame
    errors = [np.abs(photo - noise(64, 48, number)).mean() for number in range(13)]
    assert int(np.argmin(errors)) == 4
    mixed_in = DataConfig(
        root=str(write_folder(tmp_path / "data", {"train": 2, "val": 1})), unlabelled=str(video)
    )
    assert len(open_splits(mixed_in)[0].train) == 2 + 4
    os.utime(video, (4e9, 4e9))
    with pytest.raises(UserError, match=r"drive\.mkv\.frames is older than .*remove it"):
        open_dataset("photos", str(video), "all", {"classes": str(names)})


def test_nothing_below_a_folder_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images in"):
        open_dataset("photos", str(tmp_path / "empty"), "train")
