"""Distilling from a cache on the command line: built once, exact, resumable, never mixed up."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASS_NAMES, TINY_MODEL, RunCli, write_folder
from PIL import Image
from started import Ranks
from tiny_runs import (
    NO_REPORT,
    aicsd,
    distill_command,
    files_below,
    fork_cli,
    same_weights,
    stopping_at,
    train_lines,
)
from torch import Tensor

from aicsd.data import Classes, open_dataset
from aicsd.data.batches import TrainBatches
from aicsd.data.loaders import train_loader
from aicsd.data.settings import AugmentConfig, DataConfig
from aicsd.distiller import Distiller
from aicsd.errors import UserError
from aicsd.methods import load_recipe
from aicsd.models import ModelConfig, build_model, load_model, save_model
from aicsd.teacher import Teacher
from aicsd.teacher import cache as teacher_cache
from aicsd.teacher.cache import TeacherCache, WithTeacherMaps
from aicsd.teacher.cache_file import read_index

COLORS = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
EPOCHS = ("--epochs", "2", "--val_every", "0")


def write_teacher(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    save_model(build_model(ModelConfig(**TINY_MODEL), Classes(CLASS_NAMES, COLORS)), path)
    return path


@contextmanager
def looking_on() -> Iterator[list[list[int]]]:
    """Sizes of the images that a teacher looks at."""
    seen: list[list[int]] = []
    forward = Teacher.forward

    def spy(self: Teacher, image: torch.Tensor) -> object:
        seen.append(list(image.shape))
        return forward(self, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "forward", spy)
        yield seen


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with images of two sizes, a teacher, and a run that built its cache."""
    place = tmp_path_factory.mktemp("cache")
    root = write_folder(place / "data")
    for kind in ("images", "masks"):
        path = root / kind / "train" / "003.png"
        Image.fromarray(np.array(Image.open(path))[:37, :50]).save(path)
    write_teacher(place / "teacher.safetensors")
    with looking_on() as seen:
        aicsd(*command(place, place / "run", *EPOCHS, "--teacher_cache", place / "cache"))
    (place / "seen.json").write_text(json.dumps(seen))
    return place


def command(place: Path, run: Path, *more: object) -> list[str]:
    teacher = place / "teacher.safetensors"
    return distill_command(place / "data", teacher, run, *NO_REPORT, *more)


@pytest.fixture
def cache(place: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(place / "cache", tmp_path / "cache"))


def attach(place: Path, cache: Path) -> None:
    """Look into a cache as a training does before its first step, and build what is missing."""
    data = open_dataset("folder", str(place / "data"), "train")
    teacher = Teacher(load_model(place / "teacher.safetensors"), data.classes)
    TeacherCache(cache, 0).attach(data, teacher, 0)


def taught(place: Path, cache: Path) -> WithTeacherMaps:
    index = read_index(cache)
    assert index is not None
    data = open_dataset("folder", str(place / "data"), "train")
    return WithTeacherMaps(data, cache, index)


def test_the_maps_are_what_the_teacher_says_about_whole_images(place: Path) -> None:
    data, teacher = taught(place, place / "cache"), load_model(place / "teacher.safetensors")
    for number in range(8):
        image = data.read(number).image
        with torch.no_grad():
            expected = teacher(torch.from_numpy(image.copy()).permute(2, 0, 1)[None]).logits[0]
        assert expected.shape[1:] == ((10, 13) if number == 3 else (12, 16))
        maps = data.read(number).maps
        assert maps is not None
        assert torch.equal(maps, expected.half().float())


def test_terms_compare_the_student_with_the_cache(place: Path) -> None:
    data = taught(place, place / "cache")
    torch.manual_seed(3)
    student = build_model(ModelConfig(**TINY_MODEL), data.classes).eval()
    teacher = Teacher(load_model(place / "teacher.safetensors"), data.classes)
    config = DataConfig(batch_size=4, workers=0, augment=AugmentConfig(crop=32, scale_min=1.0))
    (batch,) = train_loader(data, config, TrainBatches(8, 4, 0, 0, 1))
    assert batch.teacher_logits is not None
    for resolution in ("native", "input"):
        changes = {name: {"resolution": resolution} for name in ("icsd", "pixel_kd")}
        distiller = Distiller(student, load_recipe("aicsd", changes), teacher).eval()
        found = distiller(batch, 0.5)
        own, other = student(batch.image).logits, batch.teacher_logits
        if resolution == "input":
            own, other = (
                F.interpolate(maps, (32, 32), mode="bilinear", align_corners=True)
                for maps in (own, other)
            )
        kl = F.kl_div(own.log_softmax(1), other.softmax(1), reduction="none").sum(1)
        assert batch.valid.all()
        assert found["pixel_kd"].item() == pytest.approx(kl.mean().item(), rel=1e-4)
        live = distiller(batch._replace(teacher_logits=None), 0.5)
        assert live["icsd"].item() != found["icsd"].item()


def test_an_image_shown_again_brings_its_own_logits(place: Path) -> None:
    data = taught(place, place / "cache")
    still = AugmentConfig(crop=64, scale_min=1.0, scale_max=1.0, flip=0.0, blur=0.0)
    config = DataConfig(batch_size=16, workers=0, labelled_repeat=2, augment=still)
    (batch,) = train_loader(data, config, TrainBatches(16, 16, 0, 0, 1))
    assert batch.teacher_logits is not None
    images, logits = batch.image.flatten(1), batch.teacher_logits.flatten(1)
    same = (images[:, None] == images[None]).all(2)
    assert same.sum(1).tolist() == [2] * 16
    assert torch.equal((logits[:, None] == logits[None]).all(2), same)


def test_the_teacher_does_not_run_in_training(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    tried_out, *looked_at = json.loads((place / "seen.json").read_text())
    assert tried_out == [1, 3, 32, 32]
    assert sorted(looked_at) == [[1, 3, 37, 50], *[[1, 3, 48, 64]] * 7]
    more = (*EPOCHS, "--teacher_cache", place / "cache")
    with looking_on() as seen:
        code, _, error = run_cli(*command(place, tmp_path / "again", *more))
    assert code == 0, error
    assert seen == [tried_out]
    assert "teacher cache:" not in error
    assert same_weights(tmp_path / "again", place / "run")


def test_a_cache_changes_the_training(place: Path, tmp_path: Path) -> None:
    aicsd(*command(place, tmp_path / "live", "--epochs", "1"))
    live, cached = train_lines(tmp_path / "live"), train_lines(place / "run")
    assert live[0]["loss/cross_entropy"] == cached[0]["loss/cross_entropy"]
    assert live[0]["loss/pixel_kd"] != cached[0]["loss/pixel_kd"]
    ours, theirs = (json.loads((run / "metrics.json").read_text())
                    for run in (tmp_path / "live", place / "run"))  # fmt: skip
    assert ours["teacher"] == theirs["teacher"]


def test_the_result_does_not_depend_on_workers(place: Path, tmp_path: Path) -> None:
    more = ("--teacher_cache", place / "cache", "--data.workers", "2")
    aicsd(*command(place, tmp_path / "run", *EPOCHS, *more))
    assert same_weights(tmp_path / "run", place / "run")


def test_a_cut_run_goes_on_exactly(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    run = tmp_path / "run"
    with stopping_at(3, number=signal.SIGINT):
        code, _, error = run_cli(*command(place, run, *EPOCHS, "--teacher_cache", place / "cache"))
    assert code == 130
    assert "stopped at step 3 of 4" in error
    code, _, error = run_cli("distill", "--run", run, "--resume")
    assert code == 0, error
    assert same_weights(run, place / "run")


def test_a_part_of_the_images_needs_no_new_cache(place: Path, tmp_path: Path, cache: Path) -> None:
    before = list(files_below(cache))
    more = ("--data.train_images", "4", "--epochs", "1", "--teacher_cache", cache)
    aicsd(*command(place, tmp_path / "run", *more))
    assert list(files_below(cache)) == before


def test_top_k_keeps_less(place: Path, tmp_path: Path) -> None:
    more = ("--method", "kd", "--epochs", "1", "--val_every", "0", "--teacher_cache")
    aicsd(*command(place, tmp_path / "all", *more, place / "cache"))
    aicsd(*command(place, tmp_path / "two", *more, tmp_path / "c", "--teacher_cache_top_k", "2"))
    # of three classes, two and the mass of the rest are all there is
    full, kept = (train_lines(tmp_path / run) for run in ("all", "two"))
    assert kept[0]["loss/pixel_kd"] == pytest.approx(full[0]["loss/pixel_kd"], rel=1e-2)
    assert (tmp_path / "c" / "logits.bin").stat().st_size == (7 * 12 * 16 + 10 * 13) * 8


@pytest.mark.parametrize("lines", [0, 1, 5, 9])
def test_a_killed_build_goes_on(
    place: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    lines: int,
) -> None:  # fmt: skip
    """A cache after a kill: some whole lines, half a line, and part of a map without a line."""
    whole = {name: (cache / name).read_bytes() for name in ("index.jsonl", "logits.bin")}
    index = whole["index.jsonl"].splitlines(keepends=True)
    (cache / "index.jsonl").write_bytes(b"".join(index[:lines]) + index[lines][:5])
    done = max(lines - 1, 0)
    maps = sum(3 * 2 * (10 * 13 if number == 3 else 12 * 16) for number in range(done))
    (cache / "logits.bin").write_bytes(whole["logits.bin"][: maps + 11])
    looked, look = [], teacher_cache.compute_map

    def count(*arguments: Any) -> Tensor:
        looked.append(1)
        return look(*arguments)

    monkeypatch.setattr(teacher_cache, "compute_map", count)
    attach(place, cache)
    assert len(looked) == 8 - done
    assert (f"{done} of them done" in capsys.readouterr().err) == (done > 0)
    assert {name: (cache / name).read_bytes() for name in whole} == whole


def test_a_begun_map_that_was_lost_is_computed_again(
    place: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine that lost power may have kept the index and not the maps."""
    whole = (cache / "logits.bin").read_bytes()
    index = (cache / "index.jsonl").read_bytes().splitlines(keepends=True)
    (cache / "index.jsonl").write_bytes(b"".join(index[:6]))
    (cache / "logits.bin").write_bytes(whole[:2000] + bytes(len(whole) - 2000))
    attach(place, cache)
    assert "1 of them done" in capsys.readouterr().err
    assert (cache / "logits.bin").read_bytes() == whole


def test_a_build_that_is_killed_is_left_as_it_can_go_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, looked, look = tmp_path / "cache", [], teacher_cache.compute_map
    arguments = command(place, tmp_path / "run", *EPOCHS, "--teacher_cache", cache)

    def look_or_die(*arguments: Any) -> Tensor:
        looked.append(1)
        if len(looked) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return look(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "compute_map", look_or_die)
        process = fork_cli(arguments, tmp_path / "output.txt")
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    index = read_index(cache)
    assert index is not None
    assert (len(index.checks), index.complete) == (2, False)
    assert not (tmp_path / "run" / "config.yaml").exists()
    aicsd(*arguments)
    assert same_weights(tmp_path / "run", place / "run")


def test_two_processes_build_one_cache(place: Path, tmp_path: Path) -> None:
    flags = ("--devices", "2", "--data.batch_size", "2", "--teacher_cache", tmp_path / "cache")
    arguments = command(place, tmp_path / "run", *EPOCHS, *flags)
    with Ranks(arguments, tmp_path / "log") as ranks:
        assert ranks.wait() == [0, 0], ranks.error
        assert ranks.error.count("teacher cache: 8 images") == 1
    caches = [(folder / "cache" / "logits.bin").read_bytes() for folder in (tmp_path, place)]
    assert caches[0] == caches[1]


def test_in_python_with_a_teacher_of_another_stride(place: Path, tmp_path: Path) -> None:
    import aicsd as package

    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 3, 9, stride=8, padding=4)
    data = {"name": "folder", "root": str(place / "data"), "workers": 0, "batch_size": 4,
            "augment": {"crop": 32}}  # fmt: skip
    run = package.distill(
        network, TINY_MODEL, data, "aicsd", tmp_path / "run", epochs=1, accelerator="cpu",
        teacher_cache=str(tmp_path / "cache"), report_images=0,
    )  # fmt: skip
    assert run.metrics["images"] == 4
    maps = taught(place, tmp_path / "cache").read(3).maps
    assert maps is not None
    assert maps.shape == (3, 5, 7)


def refuse(run_cli: RunCli, place: Path, run: Path, *more: object) -> str:
    code, out, error = run_cli(*command(place, run, *more))
    assert (code, out) == (2, "")
    assert error.startswith("aicsd: error: ")
    assert error.count("\n") == 1
    assert not run.exists()
    return error


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--method ad", "teacher_cache holds logits, and term 'attention' compares the feature"),
        ("--method sp", "'pairwise' compares the feature 'aspp'"),
        ("--protocol released", "teacher_cache holds nothing about padding"),
        ("--terms.pixel_kd.numerics released", "term 'pixel_kd' with numerics released"),
        ("--teacher_cache_top_k 2", "term 'icsd' needs every logit, not the 2 largest"),
        ("--method ickd --teacher_cache_top_k 2", "term 'correlation' needs every logit"),
        ("--method kd --teacher_cache_top_k 3", "teacher_cache_top_k is 3; with 3 classes"),
        ("--method kd --teacher_cache_top_k -1", "teacher_cache_top_k is -1"),
    ],
)
def test_what_a_cache_cannot_do(
    place: Path, tmp_path: Path, run_cli: RunCli, flags: str, words: str
) -> None:
    more = ("--teacher_cache", tmp_path / "cache", *flags.split())
    assert words in refuse(run_cli, place, tmp_path / "run", *more)
    assert not (tmp_path / "cache").exists()


def test_another_teacher_or_form(place: Path, tmp_path: Path, cache: Path, run_cli: RunCli) -> None:
    before = list(files_below(cache))
    for number, (flags, words) in enumerate([
        (("--teacher", write_teacher(tmp_path / "b.safetensors", 1)), "is of another teacher"),
        (("--method", "kd", "--teacher_cache_top_k", "1"), "is of teacher_cache_top_k 0, not 1"),
    ]):  # fmt: skip
        more = ("--teacher_cache", cache, *flags)
        error = refuse(run_cli, place, tmp_path / f"run{number}", *more)
        assert f"teacher_cache {cache} {words}; choose another folder, or delete this one" in error
    assert list(files_below(cache)) == before


@pytest.mark.parametrize("complete", [True, False])
def test_other_data(
    place: Path, tmp_path: Path, cache: Path, run_cli: RunCli, complete: bool
) -> None:
    if not complete:
        index = (cache / "index.jsonl").read_bytes().splitlines(keepends=True)
        (cache / "index.jsonl").write_bytes(b"".join(index[:3]))
    before = list(files_below(cache))
    more = ("--data.train_split", "val", "--teacher_cache", cache, "--data.train_images", "4")
    error = refuse(run_cli, place, tmp_path / "run", *more)
    words = "its '000' was another image" if complete else "was begun with other data"
    assert words in error
    assert list(files_below(cache)) == before


def test_a_damaged_cache(place: Path, tmp_path: Path, cache: Path, run_cli: RunCli) -> None:
    content = bytearray((cache / "logits.bin").read_bytes())
    content[5000] ^= 16
    (cache / "logits.bin").write_bytes(content)
    error = refuse(run_cli, place, tmp_path / "run", "--teacher_cache", cache)
    assert "is damaged (the map of '004' is not what was written): delete it" in error


def test_a_disk_without_room(
    place: Path, tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 8000))
    more = ("--teacher_cache", tmp_path / "deep" / "cache")
    error = refuse(run_cli, place, tmp_path / "run", *more)
    # 7 maps of 12 x 16 cells and one of 10 x 13, 3 classes of 2 bytes
    assert 7 * 12 * 16 * 6 + 10 * 13 * 6 == 8844
    assert "needs 8.8 kB and the disk has 8.0 kB left" in error
    assert not (tmp_path / "deep").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 8844))
    attach(place, tmp_path / "deep" / "cache")
    assert f"teacher cache: 8 images, 8.8 kB in {tmp_path / 'deep'}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(place: Path, tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "file").write_text("")
    error = refuse(run_cli, place, tmp_path / "run", "--teacher_cache", tmp_path / "file" / "c")
    assert "cannot be" in error


def test_the_cache_of_other_classes_is_refused(place: Path, cache: Path) -> None:
    head = json.loads((cache / "index.jsonl").read_text().partition("\n")[0])
    (cache / "index.jsonl").write_text(json.dumps({**head, "classes": ["x", "y", "z"]}) + "\n")
    with pytest.raises(UserError, match=r"is of other classes \(x, y, z\)"):
        attach(place, cache)
