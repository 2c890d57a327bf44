"""The released commands become aicsd commands; what cannot be honoured is refused."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import RunCli
from PIL import Image
from released_deeplab import random_deeplab
from started import Started

from aicsd.cli import find_command
from aicsd.cli.parser import parse
from aicsd.config import build_config
from aicsd.errors import UserError
from aicsd.losses import FocalLoss
from aicsd.methods import load_recipe
from aicsd.released import translate

CHECKOUT = Path(__file__).parent.parent
ICSD = "--backbone resnet18 --dataset pascal --pa_lambda 9500"
AICSD = f"{ICSD} --pi_lambda 10 --ALW"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a teacher's file and a data folder, named by the variable."""
    (tmp_path / "pretrained").mkdir()
    (tmp_path / "pretrained" / "deeplab-resnet.pth.tar").touch()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AICSD_DATA", str(tmp_path / "data"))
    return tmp_path


def options(arguments: str, script: str = "train_kd.py") -> dict[str, str]:
    """Flag -> value of the translated command."""
    command, _ = translate(script, shlex.split(arguments))
    return dict(zip(command[1::2], command[2::2], strict=True))


def parsed(arguments: str, script: str = "train_kd.py") -> Any:
    """The config that aicsd makes of the translated command."""
    command, _ = translate(script, shlex.split(arguments))
    _, found, rest = find_command(command)
    return build_config(found.target, parse(found, rest))


def test_the_published_icsd_command(place: Path) -> None:
    found = parsed(ICSD)
    assert found.method == "icsd"
    assert found.terms == {"icsd": {"weight": 9500}}
    assert found.protocol == "released"
    assert found.teacher == "pretrained/deeplab-resnet.pth.tar"
    assert found.student.backbone == "resnet18.tv_in1k"
    assert found.student.weights == "imagenet"
    assert (found.data.name, found.data.root) == ("voc", str(place / "data"))
    assert (found.epochs, found.data.batch_size, found.seed) == (50, 6, 1)
    assert (found.data.augment.crop, found.data.augment.short_side) == (513, 513)
    rates = found.optimizer
    assert (rates.name, rates.lr, rates.head_lr_factor) == ("sgd", 0.007, 10.0)
    assert (rates.weight_decay, rates.momentum, rates.nesterov) == (5e-4, 0.9, False)
    assert found.run == "run/pascal/deeplab-resnet18/experiment_0"


def test_the_published_aicsd_command(place: Path) -> None:
    found = parsed(AICSD)
    assert found.method == "aicsd"
    assert found.terms == {"icsd": {"weight": 9500}, "pixel_kd": {"weight": 10}}


@pytest.mark.parametrize(
    ("flags", "method", "terms"),
    [
        ("--pi_lambda 10", "kd", {"pixel_kd": {"weight": 10}}),
        ("--lo_lambda 9500", "icsd", {"icsd": {"weight": 9500}}),
        ("--ic_lambda 2.5", "ickd", {"correlation": {"weight": 2.5}}),
        ("--pa_lambda 1 --pi_lambda 2", "icsd", {"icsd": {"weight": 1}, "pixel_kd": {"weight": 2}}),
        ("", "none", None),
    ],
)
def test_weights_choose_the_method(
    place: Path, flags: str, method: str, terms: dict[str, dict[str, float]] | None
) -> None:
    found = parsed(flags)
    assert (found.method, found.terms or None) == (method, terms)


def test_every_other_flag_arrives(place: Path) -> None:
    found = parsed(
        f"{ICSD} --dataset cityscapes --backbone mobilenet --out-stride 8 --crop-size 321 "
        "--base-size 400 --epochs 7 --batch-size 12 --gpu-ids 0,1,2 --lr-scheduler cos "
        "--momentum 0.8 --weight-decay 1e-4 --nesterov --no-val --seed 5 --workers 3 "
        "--teacher_path my_teacher --checkname mine"
    )
    assert (found.data.name, found.student.backbone) == ("cityscapes", "mobilenetv2_100")
    assert found.student.output_stride == 8
    assert (found.data.augment.crop, found.data.augment.short_side) == (321, 400)
    assert (found.epochs, found.val_every, found.seed) == (7, 0, 5)
    assert (found.data.batch_size, found.devices, found.accelerator) == (4, 3, "cuda")
    assert found.data.workers == 3
    rates = found.optimizer
    assert rates.lr == pytest.approx(0.01 * 12 / 18)
    assert (rates.schedule, rates.momentum, rates.weight_decay) == ("cosine", 0.8, 1e-4)
    assert rates.nesterov is True
    assert found.teacher == "my_teacher"
    assert found.run == "run/cityscapes/mine/experiment_0"


def test_train_py_trains_the_network_alone(place: Path) -> None:
    found = parsed("--backbone resnet101 --use-sbd --no-cuda --eval-interval 3", "train.py")
    assert found.model.backbone == "resnet101.tv_in1k"
    assert (found.data.train_split, found.accelerator, found.val_every) == ("trainaug", "cpu", 3)


@pytest.mark.parametrize("script", ["train.py", "train_kd.py"])
def test_the_loss_on_labels_is_the_one_asked_for(place: Path, script: str) -> None:
    found = parsed("--use-balanced-weights --loss-type focal", script)
    assert found.terms == {"cross_entropy": {"class_weights": "log_balanced", "loss": "focal"}}
    recipe = load_recipe("none", found.terms).with_numerics("released")
    assert isinstance(recipe.terms["cross_entropy"].loss, FocalLoss)
    assert recipe.terms["cross_entropy"].loss.numerics == "released"
    assert recipe.needs_class_pixels


def test_a_second_experiment_gets_the_next_number(place: Path) -> None:
    (place / "run/pascal/deeplab-resnet18/experiment_0").mkdir(parents=True)
    assert options(ICSD)["--run"] == "run/pascal/deeplab-resnet18/experiment_1"


def test_resume_names_a_run_folder(place: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        options(f"{ICSD} --resume nothing")
    (place / "old").mkdir()
    (place / "old" / "config.yaml").touch()
    found = options(f"{ICSD} --resume old")
    assert (found["--run"], found["--resume"]) == ("old", "true")


def test_what_never_had_an_effect_is_said(place: Path) -> None:
    _, notes = translate("train_kd.py", [*ICSD.split(), "--sync-bn"])
    assert len(notes) == 1
    assert "--sync-bn" in notes[0]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--freeze-bn", "undid it"),
        ("--loss-type dice", "must be ce or focal"),
        ("--lr-scheduler step", "always failed"),
        ("--lr-scheduler warm", "poly and cos"),
        ("--ft", "--student.weights"),
        ("--start_epoch 3", "--resume"),
        ("--gcam_lambda 1", "does not contain"),
        ("--dataset coco", "NotImplementedError"),
        ("--dataset ade", "pascal, cityscapes"),
        ("--backbone xception", "could not distil"),
        ("--backbone vgg", "resnet18"),
        ("--ALW", "--pa_lambda and --pi_lambda"),
        ("--dataset cityscapes --use-sbd", "belongs to --dataset pascal"),
        ("--eval-interval 0", "1 or more"),
        ("--gpu-ids a", "numbers such as"),
        ("--gpu-ids 0,1 --batch-size 7", "cannot be shared"),
        ("--batchsize 3", "--batchsize"),
        ("--epochs many", "--epochs"),
        ("--data-root nowhere", "no folder nowhere"),
    ],
)
def test_the_rest_is_refused_with_a_reason(place: Path, flags: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        options(flags)


def test_missing_data_and_teacher_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AICSD_DATA", raising=False)
    with pytest.raises(UserError, match=r"AICSD_DATA.*VOCdevkit"):
        options(ICSD)
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"pretrained/.*--teacher_path"):
        options(f"{ICSD} --data-root data")


def test_from_the_root_of_a_checkout_an_error_is_one_line(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, CHECKOUT / "train_kd.py", "--dataset", "coco"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("train_kd.py: error: ")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC2012 with four images for training, two for validation, one for the test."""
    devkit = tmp_path / "voc" / "VOCdevkit" / "VOC2012"
    rng = np.random.default_rng(0)
    lists = {"train": 4, "val": 2, "test": 1}
    for split, count in lists.items():
        names = [f"2008_{split}{number}" for number in range(count)]
        listing = devkit / "ImageSets" / "Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(names))
        for name in names:
            image = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
            (devkit / "JPEGImages").mkdir(exist_ok=True)
            Image.fromarray(image).save(devkit / "JPEGImages" / f"{name}.jpg")
            mask = rng.integers(0, 21, (50, 70), dtype=np.uint8)
            mask[:5] = 255
            if split != "test":
                (devkit / "SegmentationClass").mkdir(exist_ok=True)
                Image.fromarray(mask).save(devkit / "SegmentationClass" / f"{name}.png")
    return tmp_path / "voc"


def test_from_the_published_command_to_the_servers_archive(
    voc: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    torch.save({"state_dict": random_deeplab("resnet18").state_dict()}, tmp_path / "t.pth.tar")
    flags = (
        f"{AICSD} --data-root {voc} --teacher_path t.pth.tar --backbone-weights none --no-cuda "
        "--epochs 1 --batch-size 2 --crop-size 65 --base-size 65 --workers 0"
    )
    script = CHECKOUT / "train_kd.py"
    with Started(flags.split(), tmp_path / "log", script=script, folder=tmp_path) as command:
        assert command.wait(300) == 0, command.error
        assert command.output.startswith("aicsd distill --config ")
    run = tmp_path / "run" / "pascal" / "deeplab-resnet18" / "experiment_0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert {name: term["numerics"] for name, term in config["terms"].items()} == {
        "cross_entropy": "released",
        "icsd": "released",
        "pixel_kd": "released",
    }
    assert config["terms"]["icsd"]["weight"] == 9500
    assert config["terms"]["pixel_kd"]["weight"] == 10
    on_voc = ("--data.name", "voc", "--data.root", voc)
    scores = {}
    more: dict[str, tuple[object, ...]] = {"standard": (), "released": ("--short_side", 65)}
    for protocol in more:
        out = tmp_path / f"{protocol}.json"
        code, _, error = run_cli(
            "evaluate", run, *on_voc, "--protocol", protocol, *more[protocol], "--json", out
        )
        assert code == 0, error
        scores[protocol] = json.loads(out.read_text())
    reported = json.loads((run / "metrics.json").read_text())
    assert reported["per_class_iou"] == pytest.approx(scores["released"]["per_class_iou"])
    assert reported["per_class_iou"] != scores["standard"]["per_class_iou"]
    code, _, error = run_cli("submit", run, *on_voc, "-o", tmp_path / "results.tgz")
    assert code == 0, error
    with tarfile.open(tmp_path / "results.tgz") as archive:
        assert archive.getnames() == ["results/VOC2012/Segmentation/comp6_test_cls/2008_test0.png"]
