"""Every mistake of a user: exit code 2, one line that tells how to mend it, nothing left behind."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, TINY_MODEL, write_folder
from PIL import Image
from safetensors.torch import save_file
from tiny_runs import aicsd, files_below, train_command, train_lines

from aicsd.data import Classes
from aicsd.models import ModelConfig, build_model, save_model

RunCli = Callable[..., tuple[int, str, str]]

DATA = "--data.name folder --data.root data"
FIT = f"{DATA} --data.batch_size 2 --data.workers 0 --data.augment.crop 32 --accelerator cpu"
FIT += " --epochs 1 --run out"
MODEL = " ".join(f"--{{0}}.{key} {value}" for key, value in TINY_MODEL.items())
TRAIN = f"train {FIT} {MODEL.format('model')}"
DISTILL = f"distill {FIT} {MODEL.format('student')} --teacher teacher.safetensors"

CONFIGS = {
    "misspelt.yaml": "epoch: 3\n",
    "misspelt_nested.yaml": "data: {augment: {crp: 32}}\n",
    "misspelt_student.yaml": "student: {bakbone: resnet18}\n",
    "misspelt_term.yaml": "terms: {icsd: {wegiht: 3}}\n",
    "wrong_type.yaml": "optimizer: {lr: fast}\n",
    "no_section.yaml": "optimizer: 3\n",
    "section_list.yaml": "data: {augment: [1, 2]}\n",
    "broken.yaml": "epochs: 1\noptimizer: {lr: [1\n",
    "list.yaml": "- epochs\n- 1\n",
    "empty.yaml": "# nothing yet\n",
    "tag.yaml": "run: !!python/object/apply:os.mkdir ['owned']\n",
    "recipe_empty.yaml": "terms: {}\n",
    "recipe_term.yaml": "terms: {cross_entrpy: {weight: 1}}\n",
    "recipe_list.yaml": "- cross_entropy\n",
}

# name, command line, what the message must contain
CASES = [
    # keys
    ("flag", f"{TRAIN} --data.nme x", ["unknown key 'data.nme'", "'data.name'"]),
    ("flag_with_equals", f"{TRAIN} --data.nme=x", ["unknown key 'data.nme'", "'data.name'"]),
    ("flag_top", f"{TRAIN} --epohcs 3", ["unknown key 'epohcs'", "'epochs'"]),
    ("flag_evaluate", f"evaluate teacher.safetensors {DATA} --batchsize 3",
     ["unknown key 'batchsize'", "'batch_size'"]),
    ("flag_predict", "predict teacher.safetensors data/images/val --out out --opactiy 1",
     ["unknown key 'opactiy'", "'opacity'"]),
    ("flag_check", "data check --data.rot data", ["unknown key 'data.rot'", "'data.root'"]),
    ("flag_of_other_command", f"{TRAIN} --teacher teacher.safetensors", ["unknown key 'teacher'"]),
    ("yaml_key", f"{TRAIN} --config misspelt.yaml", ["unknown key 'epoch'", "'epochs'"]),
    ("yaml_key_nested", f"{TRAIN} --config misspelt_nested.yaml",
     ["unknown key 'data.augment.crp'", "'data.augment.crop'"]),
    ("yaml_key_student", f"{DISTILL} --config misspelt_student.yaml",
     ["unknown key 'student.bakbone'", "'student.backbone'"]),
    ("yaml_key_term", f"{DISTILL} --config misspelt_term.yaml",
     ["term 'icsd'", "unknown key 'wegiht'", "'weight'"]),
    ("term_key", f"{DISTILL} --terms.icsd.wegiht 3",
     ["term 'icsd'", "unknown key 'wegiht'", "'weight'"]),
    ("option_key", f"{TRAIN} --data.options.size 3", ["data.options of folder", "'size'"]),
    ("option_key_near", "data check --data.name digits --data.options.sze 3",
     ["data.options of digits", "'sze'", "did you mean 'size'"]),
    ("option_root", f"{TRAIN} --data.options.root data", ["data.options of folder", "'root'"]),
    # names
    ("command", "traiin", ["'traiin'", "'train'"]),
    ("no_command", "", ["no command; give init, train, distill, evaluate", "export", "data"]),
    ("no_action", "data", ["no command after data; give check, prepare"]),
    ("action", "data chekk", ["'chekk'", "'check'"]),
    ("term", f"{DISTILL} --terms.icds.weight 3", ["unknown term 'icds'", "'icsd'"]),
    ("method", f"{DISTILL} --method aicds", ["unknown method 'aicds'", "'aicsd'"]),
    ("dataset", f"{TRAIN} --data.name fodler", ["unknown dataset 'fodler'", "'folder'"]),
    ("backbone", f"{TRAIN} --model.backbone mobilenet_050",
     ["unknown backbone 'mobilenet_050'", "mobilenetv2_050"]),
    ("backbone_without_maps", f"{TRAIN} --model.backbone vit_tiny_patch16_224",
     ["backbone 'vit_tiny_patch16_224'"]),
    ("split", f"{TRAIN} --data.train_split traiin", ["data/images/traiin", "images/<split>"]),
    ("schedule", f"{DISTILL} --terms.icsd.schedule risign", ["'risign'", "'rising'"]),
    # values
    ("int", f"{TRAIN} --epochs many", ["epochs is 'many'", "a whole number"]),
    ("int_fraction", f"{TRAIN} --epochs 1.5", ["epochs is '1.5'", "a whole number"]),
    ("float", f"{TRAIN} --optimizer.lr fast", ["optimizer.lr is 'fast'", "a number"]),
    ("float_nan", f"{TRAIN} --optimizer.lr nan", ["optimizer.lr", "'nan'"]),
    ("bool", f"{TRAIN} --optimizer.nesterov maybe", ["optimizer.nesterov is 'maybe'", "true"]),
    ("choice", f"{TRAIN} --optimizer.name adam", ["optimizer.name is 'adam'", "'adamw'"]),
    ("choice_precision", f"{TRAIN} --precision 64", ["precision is '64'", "'bf16-mixed'"]),
    ("mapping", f"{DISTILL} --terms 3", ["terms is '3'", "a mapping"]),
    ("no_value", f"{TRAIN} --epochs", ["--epochs", "expected one argument"]),
    ("yaml_value", f"{TRAIN} --config wrong_type.yaml", ["optimizer.lr is 'fast'", "a number"]),
    ("yaml_section", f"{TRAIN} --config no_section.yaml", ["optimizer is 3", "optimizer.name"]),
    ("yaml_section_list", f"{TRAIN} --config section_list.yaml",
     ["data.augment is [1, 2]", "data.augment.crop"]),
    ("term_value", f"{DISTILL} --terms.icsd.weight heavy", ["term 'icsd'", "weight is 'heavy'"]),
    ("term_negative", f"{DISTILL} --terms.icsd.weight -1", ["term 'icsd'", "weight is -1"]),
    ("term_option", f"{DISTILL} --terms.icsd.temperature 0", ["temperature"]),
    ("resolution", f"{DISTILL} --terms.icsd.resolution full", ["'full'", "native, input"]),
    ("numerics", f"{DISTILL} --terms.icsd.numerics paper",
     ["term 'icsd'", "numerics is 'paper'", "described, released"]),
    ("numerics_contradicted", f"{DISTILL} --terms.icsd.numerics released "
     "--terms.icsd.per_image true", ["term 'icsd'", "per_image is True", "numerics described"]),
    ("feature", f"{DISTILL} --method ad --terms.attention.at decodr",
     ["term 'attention'", "no feature 'decodr'", "did you mean 'decoder'"]),
    ("feature_resolution", f"{DISTILL} --method sp --terms.pairwise.resolution input",
     ["term 'pairwise'", "'aspp'", "native"]),
    ("epochs", f"{TRAIN} --epochs 0", ["epochs is 0", "1 or more"]),
    ("seed", f"{TRAIN} --seed -1", ["seed is -1", "0 or more"]),
    ("seed_too_big", f"{TRAIN} --seed 99999999999999999999", ["seed is 99999999999999999999"]),
    ("save_every", f"{TRAIN} --save_every 0", ["save_every is 0", "1 or more"]),
    ("val_every", f"{TRAIN} --val_every -1", ["val_every is -1", "0 or more"]),
    ("graphs", f"{TRAIN} --cuda_graphs true --accelerator cpu", ["cuda_graphs", "cuda", "cpu"]),
    ("lr", f"{TRAIN} --optimizer.lr 0", ["optimizer.lr is 0", "above 0"]),
    ("head_lr", f"{TRAIN} --optimizer.head_lr_factor -1", ["optimizer.head_lr_factor is -1"]),
    ("momentum", f"{TRAIN} --optimizer.momentum -1", ["optimizer.momentum is -1", "0 or more"]),
    ("weight_decay", f"{TRAIN} --optimizer.weight_decay -1", ["optimizer.weight_decay is -1"]),
    ("power", f"{TRAIN} --optimizer.power -1", ["optimizer.power is -1", "0 or more"]),
    ("clip", f"{TRAIN} --optimizer.clip -1", ["optimizer.clip is -1", "0 or more"]),
    ("nesterov", f"{TRAIN} --optimizer.nesterov true --optimizer.momentum 0",
     ["optimizer.nesterov", "optimizer.momentum above 0"]),
    ("accumulate", f"{TRAIN} --optimizer.accumulate 0", ["optimizer.accumulate is 0"]),
    ("ema", f"{TRAIN} --optimizer.ema 1", ["optimizer.ema is 1", "below 1"]),
    ("crop", f"{TRAIN} --data.augment.crop 8", ["data.augment.crop is 8", "16 or more"]),
    ("scales", f"{TRAIN} --data.augment.scale_min 3", ["scale_min 3", "scale_max 2"]),
    ("flip", f"{TRAIN} --data.augment.flip 2", ["data.augment.flip", "2"]),
    ("batch_of_one", f"{TRAIN} --data.batch_size 1", ["data.batch_size is 1", "2 or more"]),
    ("workers", f"{TRAIN} --data.workers -1", ["data.workers is -1", "0 or more"]),
    ("output_stride", f"{TRAIN} --model.output_stride 4", ["output_stride is 4", "(8, 16, 32)"]),
    ("channels", f"{TRAIN} --model.aspp_channels 0", ["aspp_channels is 0", "1 or more"]),
    ("too_few_images", f"{TRAIN} --data.batch_size 5",
     ["4 training images", "batch of 5", "data.batch_size"]),
    ("too_few_batches", f"{TRAIN} --optimizer.accumulate 3",
     ["1 epochs of 2 batches", "optimizer.accumulate = 3"]),
    ("accelerator", f"{TRAIN} --accelerator gpuu", ["accelerator 'gpuu'", "cuda"]),
    ("batch_size_evaluate", f"evaluate teacher.safetensors {DATA} --batch_size 0",
     ["batch_size is 0"]),
    ("workers_evaluate", f"evaluate teacher.safetensors {DATA} --workers -1", ["workers is -1"]),
    ("device", f"evaluate teacher.safetensors {DATA} --device gpuu", ["device 'gpuu'"]),
    ("device_meta", f"evaluate teacher.safetensors {DATA} --device meta", ["device 'meta'"]),
    ("device_predict", "predict teacher.safetensors data/images/val --out out --device gpuu",
     ["device 'gpuu'"]),
    ("opacity", "predict teacher.safetensors data/images/val --out out --opacity 2",
     ["opacity is 2", "0 to 1"]),
    # what is missing
    ("no_run", f"train {DATA}", ["missing: run"]),
    ("no_model", f"evaluate {DATA}", ["missing: model"]),
    ("no_images", "predict teacher.safetensors --out out", ["missing: images"]),
    ("no_out", "predict teacher.safetensors data/images/val", ["missing: out"]),
    ("no_root", f"{TRAIN} --data.root null", ["'folder' needs data.root", "images/<split>"]),
    ("no_root_folder", f"{TRAIN} --data.root nowhere", ["no folder nowhere", "images/<split>"]),
    ("no_root_check", "data check --data.name folder --data.root nowhere", ["no folder nowhere"]),
    ("no_config", f"{TRAIN} --config nowhere.yaml", ["nowhere.yaml", "does not exist"]),
    ("config_folder", f"{TRAIN} --config data", ["data", "not a file"]),
    ("no_recipe", f"{DISTILL} --method nowhere.yaml", ["nowhere.yaml", "does not exist"]),
    ("no_teacher", f"distill {FIT} {MODEL.format('student')}", ["'aicsd'", "--teacher"]),
    ("no_teacher_file", f"{DISTILL} --teacher nowhere", ["no model at nowhere"]),
    ("no_weights", f"{TRAIN} --model.weights nowhere", ["no backbone weights at nowhere"]),
    ("evaluate_nothing", f"evaluate nowhere {DATA}", ["no model at nowhere"]),
    ("predict_nothing", "predict teacher.safetensors nowhere.png --out out",
     ["no image or folder at nowhere.png"]),
    ("predict_empty_folder", "predict teacher.safetensors empty --out out",
     ["no images in empty", ".png"]),
    # files that are not what they should be
    ("config_not_yaml", f"{TRAIN} --config broken.yaml", ["config broken.yaml", "line 3", "YAML"]),
    ("config_list", f"{TRAIN} --config list.yaml", ["config list.yaml", "mapping"]),
    ("config_empty", f"{TRAIN} --config empty.yaml", ["config empty.yaml", "mapping"]),
    ("config_tag", f"{TRAIN} --config tag.yaml", ["config tag.yaml, line 1", "python/object"]),
    ("config_binary", f"{TRAIN} --config garbage", ["config garbage", "YAML"]),
    ("recipe_without_terms", f"{DISTILL} --method empty.yaml", ["empty.yaml", "'terms'"]),
    ("recipe_no_terms", f"{DISTILL} --method recipe_empty.yaml", ["recipe_empty.yaml", "no terms"]),
    ("recipe_term", f"{DISTILL} --method recipe_term.yaml", ["'cross_entrpy'", "'cross_entropy'"]),
    ("recipe_list", f"{DISTILL} --method recipe_list.yaml", ["recipe_list.yaml", "'terms'"]),
    ("teacher_garbage", f"{DISTILL} --teacher garbage", ["garbage", "safetensors"]),
    ("teacher_image", f"{DISTILL} --teacher data/images/val/000.png", ["000.png", "safetensors"]),
    ("teacher_folder", f"{DISTILL} --teacher empty", ["no model at empty", "not finished"]),
    ("teacher_weights", f"{DISTILL} --teacher other.safetensors", ["other.safetensors", "header"]),
    ("teacher_classes", f"{DISTILL} --data.root four_classes",
     ["teacher has no classes", "'post'", "'ground'", "same classes"]),
    ("weights_garbage", f"{TRAIN} --model.weights garbage", ["garbage", "safetensors"]),
    ("weights_do_not_fit", f"{TRAIN} --model.weights other.safetensors",
     ["other.safetensors does not fit backbone 'mobilenetv2_035'", "keys missing"]),
    ("weights_shape", f"{TRAIN} --model.weights shape.safetensors",
     ["shape.safetensors does not fit", "conv_stem.weight is (1,)"]),
    ("weights_other_net", f"{TRAIN} --model.weights teacher.safetensors --model.aspp_channels 16",
     ["teacher.safetensors", "another architecture", "aspp"]),
    ("evaluate_garbage", f"evaluate garbage {DATA}", ["garbage", "safetensors"]),
    ("evaluate_classes", "evaluate teacher.safetensors --data.name folder --data.root four_classes",
     ["'ground', 'disc', 'bar'", "'post'"]),
    ("predict_text", "predict teacher.safetensors list.yaml --out out",
     ["list.yaml is not a readable image"]),
    ("predict_two_of_a_name", "predict teacher.safetensors data/images/val data/images/train "
     "--out out", ["val/000.png and data/images/train/000.png", "different folders"]),
    ("predict_over_images", "predict teacher.safetensors data/images/val --out data/images/val",
     ["data/images/val/000.png", "another folder"]),
    ("predict_out_is_file", "predict teacher.safetensors data/images/val --out garbage",
     ["cannot write garbage/000"]),
    ("predict_out_below_file", "predict teacher.safetensors data/images/val --out garbage/x",
     ["cannot write garbage/x/000"]),
    ("json_below_file", f"evaluate teacher.safetensors {DATA} --json garbage/x.json",
     ["cannot write garbage/x.json"]),
    ("json_is_folder", f"evaluate teacher.safetensors {DATA} --json empty", ["cannot write empty"]),
    ("run_is_file", f"{TRAIN} --run garbage", ["run: garbage exists", "another folder"]),
    ("run_below_file", f"{TRAIN} --run garbage/x", ["cannot write to garbage/x"]),
    ("run_exists", f"{TRAIN} --run data", ["run: data exists", "--resume"]),
    ("run_exists_distill", f"{DISTILL} --run data", ["run: data exists", "--resume"]),
]  # fmt: skip

BROKEN_DATA = {
    "mask_missing": ["no mask for data/images/train/002.png", "data/masks/train"],
    "mask_id": ["data/masks/train/002.png", "class id 7", "ids 0 to 2"],
    "mask_size": ["data/images/train/002.png is 64x48", "data/masks/train/002.png is 63x48"],
    "mask_rgb": ["data/masks/train/002.png is a RGB image", "one channel"],
    "mask_truncated": ["data/masks/train/002.png is not a readable image"],
    "image_empty": ["data/images/train/002.png is not a readable image"],
    "image_is_text": ["data/images/train/002.png is not a readable image"],
    "no_images": ["no images in data/images/train"],
    "no_masks_folder": ["no folder data/masks/train"],
    "no_classes": ["no data/classes.txt", "one class name a line"],
    "classes_empty": ["data/classes.txt names 0 classes"],
    "classes_repeated": ["data/classes.txt names 'disc' more than once"],
}


def break_data(root: Path, what: str) -> None:
    image, mask = root / "images" / "train" / "002.png", root / "masks" / "train" / "002.png"
    if what == "mask_missing":
        mask.unlink()
    elif what == "mask_id":
        ids = np.zeros((48, 64), np.uint8)
        ids[5, 5] = 7
        Image.fromarray(ids).save(mask)
    elif what == "mask_size":
        Image.fromarray(np.zeros((48, 63), np.uint8)).save(mask)
    elif what == "mask_rgb":
        Image.new("RGB", (64, 48)).save(mask)
    elif what == "mask_truncated":
        mask.write_bytes(mask.read_bytes()[:-40])
    elif what == "image_truncated":
        image.write_bytes(image.read_bytes()[:-2000])
    elif what == "image_empty":
        image.write_bytes(b"")
    elif what == "image_is_text":
        image.write_text("not an image")
    elif what == "no_images":
        for path in image.parent.iterdir():
            path.unlink()
    elif what == "no_masks_folder":
        shutil.rmtree(mask.parent)
    elif what == "no_classes":
        (root / "classes.txt").unlink()
    elif what == "classes_empty":
        (root / "classes.txt").write_text("\n")
    elif what == "classes_repeated":
        (root / "classes.txt").write_text("disc\nbar\ndisc\n")
    else:
        raise AssertionError(what)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound data, a teacher, and files with which something is wrong."""
    place = tmp_path_factory.mktemp("errors")
    write_folder(place / "data", {"train": 4, "val": 2})
    shutil.copytree(place / "data", place / "four_classes")
    (place / "four_classes" / "classes.txt").write_text("ground\ndisc\nbar\npost\n")
    classes = Classes(CLASS_NAMES, ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
    save_model(build_model(ModelConfig(**TINY_MODEL), classes), place / "teacher.safetensors")
    save_file({"a": torch.zeros(3)}, place / "other.safetensors")
    save_file({"conv_stem.weight": torch.zeros(1)}, place / "shape.safetensors")
    (place / "garbage").write_bytes(b"\xff\xfe\x00 neither YAML nor weights \x80")
    (place / "empty").mkdir()
    for name, text in CONFIGS.items():
        (place / name).write_text(text)
    return place


@pytest.fixture
def broken(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with its own ``data`` for a test to break."""
    shutil.copytree(workplace / "data", tmp_path / "data")
    shutil.copy(workplace / "teacher.safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished_run(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    aicsd(*train_command(workplace / "data", run, "--epochs", "1", "--optimizer.ema", "0.5"))
    return run


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A run whose result is missing, so that a resume needs the checkpoint."""
    shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    return tmp_path / "run"


def assert_one_line(code: int, output: str, error: str, words: list[str]) -> None:
    assert code == 2, (code, output, error)
    assert error.startswith("aicsd: error: ")
    assert error.endswith("\n")
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error + output
    missing = [word for word in words if word not in error]
    assert not missing, f"{missing} not in {error}"


@pytest.mark.parametrize(
    ("command", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_user_error(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
    command: str,
    words: list[str],
) -> None:
    monkeypatch.chdir(workplace)
    before = list(files_below(workplace))
    assert_one_line(*run_cli(*shlex.split(command)), words)
    assert list(files_below(workplace)) == before


@pytest.mark.parametrize("what", BROKEN_DATA)
def test_broken_data(broken: Path, run_cli: RunCli, what: str) -> None:
    break_data(broken / "data", what)
    before = list(files_below(broken))
    assert_one_line(*run_cli(*shlex.split(TRAIN)), BROKEN_DATA[what])
    assert list(files_below(broken)) == before
    assert_one_line(*run_cli(*shlex.split(f"data check {DATA}")), BROKEN_DATA[what])


def test_broken_validation_data(broken: Path, run_cli: RunCli) -> None:
    """Found before the first step, not after the first epoch."""
    Image.new("RGB", (64, 48)).save(broken / "data" / "masks" / "val" / "001.png")
    assert_one_line(*run_cli(*shlex.split(TRAIN)), ["masks/val/001.png is a RGB image"])
    assert not (broken / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image_stops_training(broken: Path, run_cli: RunCli, workers: int) -> None:
    """Only decoding shows it; the run can go on when the image is mended."""
    image = broken / "data" / "images" / "train" / "002.png"
    whole = image.read_bytes()
    break_data(broken / "data", "image_truncated")
    command = shlex.split(f"{TRAIN} --data.workers {workers} --seed 2")
    assert_one_line(*run_cli(*command), ["data/images/train/002.png is not a readable image"])
    assert not list((broken / "out").rglob("student*.safetensors"))
    image.write_bytes(whole)
    code, _, error = run_cli(*command, "--resume")
    assert code == 0, error
    assert len(train_lines(broken / "out")) == 1


def test_data_check_lists_every_bad_file(broken: Path, run_cli: RunCli) -> None:
    root = broken / "data"
    break_data(root, "mask_id")
    image = root / "images" / "train" / "000.png"
    image.write_bytes(image.read_bytes()[:-2000])
    Image.new("RGB", (64, 48)).save(root / "masks" / "val" / "001.png")
    code, output, error = run_cli(*shlex.split(f"data check {DATA}"))
    assert code == 2
    found = error.splitlines()
    assert all(line.startswith("aicsd: error: ") for line in found)
    named = [
        next(name for name in ("train/000.png", "train/002.png", "val/001.png") if name in line)
        for line in found
    ]
    assert named == ["train/000.png", "train/002.png", "val/001.png"]
    assert "train: 4 images, 2 cannot be used" in output
    assert "val: 2 images, 1 cannot be used" in output
    code, output, error = run_cli(*shlex.split(f"data check {DATA} --data.split val"))
    assert (code, len(error.splitlines())) == (2, 1)
    assert "train" not in output


def test_data_check_of_a_sound_tree(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli
) -> None:
    monkeypatch.chdir(workplace)
    code, output, error = run_cli(*shlex.split(f"data check {DATA} --data.split 'train, val'"))
    assert (code, error) == (0, "")
    heads = [line for line in output.splitlines() if not line.startswith("  ")]
    assert heads == ["train: 4 images, 0 cannot be used", "val: 2 images, 0 cannot be used"]


def test_camvid_without_annotations(broken: Path, run_cli: RunCli) -> None:
    (broken / "data" / "images" / "train").rename(broken / "data" / "train")
    command = shlex.split("data check --data.name camvid --data.root data")
    assert_one_line(*run_cli(*command), ["no folder data/trainannot", "{train,val,test}annot"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"{TRAIN} --accelerator cuda", ["accelerator 'cuda'", "cannot be used here"]),
        (f"evaluate teacher.safetensors {DATA} --device cuda", ["device 'cuda'"]),
    ],
    ids=["train", "evaluate"],
)
def test_absent_device(broken: Path, run_cli: RunCli, command: str, words: list[str]) -> None:
    assert_one_line(*run_cli(*shlex.split(command)), words)
    assert not (broken / "out").exists()


def test_loss_that_is_not_finite(broken: Path, run_cli: RunCli) -> None:
    command = f"{TRAIN} --optimizer.lr 1e6 --epochs 4 --log_every 1 --save_every 1 --val_every 0"
    code, _, error = run_cli(*shlex.split(command))
    assert code == 2
    words = ["no longer finite", "step", "optimizer.lr", "optimizer.clip"]
    assert_one_line(code, "", error, words)
    run = broken / "out"
    # no model that only predicts nonsense, and nothing but numbers in the log
    assert not list(run.rglob("*.safetensors"))
    assert all(abs(line["loss"]) < float("inf") for line in train_lines(run))


BROKEN_CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "other_keys": lambda path: torch.save({"epoch": 3}, path),
    "no_states": lambda path: torch.save({"progress": {}}, path),
    "code": lambda path: torch.save({"progress": os.system}, path),
}


@pytest.mark.parametrize("how", BROKEN_CHECKPOINTS)
def test_broken_checkpoint(run_copy: Path, run_cli: RunCli, how: str) -> None:
    checkpoint = run_copy / "checkpoints" / "last.pt"
    BROKEN_CHECKPOINTS[how](checkpoint)
    before = checkpoint.read_bytes()
    words = [f"checkpoint {checkpoint}", "run"]
    assert_one_line(*run_cli("train", "--run", run_copy, "--resume"), words)
    assert checkpoint.read_bytes() == before


def test_checkpoint_of_other_classes(run_copy: Path, workplace: Path, run_cli: RunCli) -> None:
    """data.root may change when a run is resumed; what is in it may not."""
    command = ["train", "--run", run_copy, "--resume", "--data.root", workplace / "four_classes"]
    assert_one_line(*run_cli(*command), ["started with the classes", "'post'", "another run"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--optimizer.lr", "0.5"], ["optimizer.lr was 0.007 and now is 0.5"]),
        (["--seed", "3"], ["seed was 0 and now is 3"]),
        (["--data.augment.crop", "48"], ["data.augment.crop was 32 and now is 48"]),
        (["--model.aspp_channels", "16"], ["model.aspp_channels was 8 and now is 16"]),
        (["--epochs", "2", "--optimizer.ema", "0"],
         ["epochs was 1 and now is 2", "optimizer.ema was 0.5 and now is 0"]),
    ],
    ids=["lr", "seed", "crop", "model", "two"],
)  # fmt: skip
def test_resume_with_other_settings(
    run_copy: Path, run_cli: RunCli, flags: list[str], words: list[str]
) -> None:
    before = list(files_below(run_copy))
    result = run_cli("train", "--run", run_copy, "--resume", *flags)
    assert_one_line(*result, ["other settings", *words])
    assert list(files_below(run_copy)) == before


def test_resume_with_another_command(run_copy: Path, run_cli: RunCli) -> None:
    before = list(files_below(run_copy))
    result = run_cli("distill", "--run", run_copy, "--resume")
    assert_one_line(*result, ["'model.backbone'", "'student.backbone'"])
    assert list(files_below(run_copy)) == before


def test_resume_with_a_broken_config(run_copy: Path, run_cli: RunCli) -> None:
    (run_copy / "config.yaml").write_text("epochs: [1\n")
    result = run_cli("train", "--run", run_copy, "--resume")
    assert_one_line(*result, [f"config {run_copy / 'config.yaml'}, line 2", "YAML"])


def test_finished_run_is_not_overwritten(
    finished_run: Path, workplace: Path, run_cli: RunCli
) -> None:
    before = list(files_below(finished_run))
    result = run_cli(*train_command(workplace / "data", finished_run, "--epochs", "1"))
    assert_one_line(*result, [f"run: {finished_run} exists", "--resume"])
    assert list(files_below(finished_run)) == before


def test_images_whose_results_collide(workplace: Path, tmp_path: Path, run_cli: RunCli) -> None:
    """The overlay of ``a`` has the name of the class ids of ``a_overlay``."""
    for name in ("a.png", "a_overlay.png"):
        shutil.copy(workplace / "data" / "images" / "val" / "000.png", tmp_path / name)
    command = ["predict", workplace / "teacher.safetensors", tmp_path, "--out", tmp_path / "out"]
    assert_one_line(*run_cli(*command), ["a.png and", "a_overlay.png", "different folders"])
    assert not (tmp_path / "out").exists()


def test_file_that_does_not_hold_its_model(
    workplace: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    """The header names another width than the weights have."""
    classes = Classes(CLASS_NAMES, ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
    config = ModelConfig(**TINY_MODEL)
    model = build_model(config, classes)
    assert model.origin is not None
    model.origin.options["aspp_channels"] = replace(config, aspp_channels=16).aspp_channels
    save_model(model, tmp_path / "odd.safetensors")
    command = ["evaluate", tmp_path / "odd.safetensors", *shlex.split(DATA)]
    assert_one_line(*run_cli(*command[:2], "--data.name", "folder", "--data.root",
                             workplace / "data"), ["odd.safetensors does not hold"])  # fmt: skip


def test_debug_shows_the_traceback(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    from aicsd.cli import main
    from aicsd.errors import UserError

    monkeypatch.setenv("AICSD_DEBUG", "1")
    with pytest.raises(UserError, match="no model at nowhere"):
        main(["evaluate", "nowhere"])


def test_real_process(broken: Path) -> None:
    """``python -m aicsd``: the exit code and, with a truncated image, no word of OpenCV's."""
    break_data(broken / "data", "image_truncated")
    result = subprocess.run(
        [sys.executable, "-m", "aicsd", "data", "check", *shlex.split(DATA)],
        capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert_one_line(result.returncode, result.stdout, result.stderr, ["train/002.png"])
    assert "train: 4 images, 1 cannot be used" in result.stdout
