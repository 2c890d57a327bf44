"""The commands of the released AICSD code, ``train_kd.py`` and ``train.py``, as commands of aicsd.

Nothing trains here: flags are translated, the equivalent command is printed, and it is run.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from aicsd.errors import UserError
from aicsd.runs import RunFolder

DATASETS = {"pascal": "voc", "cityscapes": "cityscapes"}
BACKBONES = {
    "resnet18": "resnet18.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    "mobilenet": "mobilenetv2_100",
}
DEFAULT_EPOCHS = {"pascal": 50, "cityscapes": 200}
DEFAULT_RATES = {"pascal": 0.007, "cityscapes": 0.01}
IMAGES_PER_DEVICE = 6
TEACHER_FOLDER = Path("pretrained")
DATA_VARIABLE = "AICSD_DATA"
DATA_HELP = {
    "pascal": (
        "PASCAL VOC 2012 (folder DIR/VOCdevkit/VOC2012; 'aicsd data prepare voc --root DIR' "
        "fetches it)"
    ),
    "cityscapes": (
        "Cityscapes (DIR/leftImg8bit and DIR/gtFine; 'aicsd data prepare cityscapes --root DIR' "
        "tells where to get it)"
    ),
}
REFUSED = {
    "freeze_bn": (
        "--freeze-bn had no effect in the released code, whose next call of train() undid it; "
        "leave it out"
    ),
    "ft": "--ft is not offered; continue from trained weights with --student.weights FILE of aicsd",
    "gcam_lambda": "--gcam_lambda weighted a term that the released code does not contain",
    "start_epoch": (
        "--start_epoch is not offered: an interrupted run continues where it was with "
        "--resume RUN_FOLDER"
    ),
}
WITHOUT_EFFECT = {
    "sync_bn": "--sync-bn: the released distillation never synchronised",
    "test_batch_size": "--test-batch-size: the released evaluation used 1 whatever it said",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists every flag)")


def main(script: str, arguments: list[str]) -> None:
    """Run what ``python SCRIPT ARGUMENTS`` of the released code would.

    Args:
        script: ``train_kd.py`` or ``train.py``.
        arguments: its flags.
    """
    from aicsd import cli

    try:
        command, notes = translate(script, arguments)
    except UserError as error:
        print(f"{script}: error: {error}", file=sys.stderr)
        sys.exit(2)
    for note in notes:
        print(f"{script}: no effect: {note}", file=sys.stderr)
    print(f"aicsd {shlex.join(command)}", flush=True)
    cli.main(command)


def translate(script: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of the equivalent ``aicsd`` command, and notes on flags without effect.

    Raises:
        UserError: a flag that is refused, with the reason; missing data or teacher.
    """
    distils = script == "train_kd.py"
    flags = _parser(script, distils).parse_args(arguments)
    for name, reason in REFUSED.items():
        if getattr(flags, name, None):
            raise UserError(reason)
    _check_choices(flags)
    notes = [note for name, note in WITHOUT_EFFECT.items() if getattr(flags, name)]
    command = ["distill" if distils else "train"]
    command += ["--config", _config(flags, distils)]
    command += list(_common(flags, "student" if distils else "model"))
    if distils:
        method = _method(flags)
        command += method
        if "none" not in method:
            command += ["--teacher", str(_teacher(flags))]
    return command + _run(flags), notes


def _parser(script: str, distils: bool) -> _Parser:
    parser = _Parser(
        prog=script,
        allow_abbrev=False,
        description=(__doc__ or "").splitlines()[0],
        epilog=(
            "Flags and defaults are those of the released code; --data-root and "
            "--backbone-weights are new."
        ),
    )
    add = parser.add_argument
    add("--backbone", default="resnet18", help=", ".join(BACKBONES))
    add("--backbone-weights", default="imagenet", help="imagenet, none or a safetensors file")
    add("--out-stride", type=int, default=16, help="output stride: 8 or 16")
    add("--dataset", default="pascal", help=", ".join(DATASETS))
    add("--data-root", help=f"folder of the data; otherwise the variable {DATA_VARIABLE}")
    add("--use-sbd", action="store_true", help="train on the 10,582 images of VOC and SBD")
    add("--workers", type=int, default=4, help="processes that load images")
    add("--base-size", type=int, default=513, help="shorter side of an image at scale 1")
    add("--crop-size", type=int, default=513, help="side of the crop; shorter side in evaluation")
    add("--sync-bn", action="store_true", help="no effect")
    add("--freeze-bn", action="store_true", help="refused")
    add("--loss-type", default="ce", help="ce or focal")
    add("--epochs", type=int, help="default: 50 on pascal, 200 on cityscapes")
    add("--start_epoch", type=int, default=0, help="refused")
    add("--batch-size", type=int, help="default: 6 per device")
    add("--test-batch-size", type=int, help="no effect")
    add(
        "--use-balanced-weights",
        action="store_true",
        help="classes weigh 1 / ln(1.02 + their share of the labelled pixels)",
    )
    add("--lr", type=float, help="default: 0.007 on pascal, 0.01 on cityscapes, times batch / 6")
    add("--lr-scheduler", default="poly", help="poly or cos (step is refused)")
    add("--momentum", type=float, default=0.9)
    add("--weight-decay", type=float, default=5e-4)
    add("--nesterov", action="store_true", help="Nesterov momentum")
    add("--no-cuda", action="store_true", help="train on the CPU")
    add("--gpu-ids", default="0", help="GPUs, separated by commas: as many devices are used")
    add("--seed", type=int, default=1)
    add("--resume", help="run folder to continue")
    add("--checkname", help="name of the folder below run/DATASET; default: deeplab-BACKBONE")
    add("--ft", action="store_true", help="refused")
    add("--eval-interval", type=int, default=1, help="epochs between two validations")
    add("--no-val", action="store_true", help="validate at the end only")
    if distils:
        add("--pa_lambda", "--lo_lambda", dest="ics", type=float, help="weight of ICSD")
        add("--pi_lambda", dest="kd", type=float, help="weight of pixel-wise distillation")
        add("--ic_lambda", dest="icc", type=float, help="weight of inter-channel correlation")
        add("--gcam_lambda", type=float, help="refused")
        add("--ALW", action="store_true", help="adaptive loss weighting")
        add(
            "--teacher_path",
            "--teacher-path",
            dest="teacher_path",
            help=f"checkpoint or run; default: the one in {TEACHER_FOLDER}/",
        )
    return parser


def _check_choices(flags: argparse.Namespace) -> None:
    if flags.dataset == "coco":
        raise UserError("--dataset coco ended in NotImplementedError in the released code too")
    if flags.dataset not in DATASETS:
        raise UserError(f"--dataset is {flags.dataset!r}; allowed are {', '.join(DATASETS)}")
    if flags.backbone in ("xception", "drn"):
        raise UserError(
            f"--backbone {flags.backbone}: the released code could not distil it; allowed are "
            f"{', '.join(BACKBONES)}"
        )
    if flags.backbone not in BACKBONES:
        raise UserError(f"--backbone is {flags.backbone!r}; allowed are {', '.join(BACKBONES)}")
    if flags.loss_type not in ("ce", "focal"):
        raise UserError(f"--loss-type is {flags.loss_type!r}; it must be ce or focal")
    if flags.lr_scheduler == "step":
        raise UserError("--lr-scheduler step always failed in the released code; use poly or cos")
    if flags.lr_scheduler not in ("poly", "cos"):
        raise UserError(f"--lr-scheduler is {flags.lr_scheduler!r}; allowed are poly and cos")
    if flags.use_sbd and flags.dataset != "pascal":
        raise UserError("--use-sbd belongs to --dataset pascal")
    if flags.eval_interval < 1:
        raise UserError(f"--eval-interval is {flags.eval_interval}; it must be 1 or more")
    if not all(number.strip().isdigit() for number in flags.gpu_ids.split(",")):
        raise UserError(f"--gpu-ids is {flags.gpu_ids!r}; it must be numbers such as 0,1")


def _config(flags: argparse.Namespace, distils: bool) -> str:
    return f"{DATASETS[flags.dataset]}/{'aicsd' if distils else 'teacher'}"


def _common(flags: argparse.Namespace, model: str) -> Iterator[str]:
    devices = len(flags.gpu_ids.split(","))
    batch = flags.batch_size or IMAGES_PER_DEVICE * devices
    if batch % devices:
        raise UserError(f"--batch-size {batch} cannot be shared by {devices} devices")
    rate = flags.lr
    if rate is None:
        rate = DEFAULT_RATES[flags.dataset] * (batch / (IMAGES_PER_DEVICE * devices))
    validate = 0 if flags.no_val else flags.eval_interval
    settings: dict[str, object] = {
        "protocol": "released",
        f"{model}.backbone": BACKBONES[flags.backbone],
        f"{model}.weights": flags.backbone_weights,
        f"{model}.output_stride": flags.out_stride,
        "data.root": _data_root(flags),
        "data.batch_size": batch // devices,
        "data.workers": flags.workers,
        "data.augment.crop": flags.crop_size,
        "data.augment.short_side": flags.base_size,
        "optimizer.lr": rate,
        "optimizer.schedule": "cosine" if flags.lr_scheduler == "cos" else "poly",
        "optimizer.momentum": flags.momentum,
        "optimizer.weight_decay": flags.weight_decay,
        "optimizer.nesterov": str(flags.nesterov).lower(),
        "epochs": flags.epochs if flags.epochs is not None else DEFAULT_EPOCHS[flags.dataset],
        "val_every": validate,
        "seed": flags.seed,
    }
    if flags.use_sbd:
        settings["data.train_split"] = "trainaug"
    if flags.use_balanced_weights:
        settings["terms.cross_entropy.class_weights"] = "log_balanced"
    if flags.loss_type == "focal":
        settings["terms.cross_entropy.loss"] = "focal"
    if flags.no_cuda:
        settings["accelerator"] = "cpu"
    elif devices > 1:
        settings |= {"accelerator": "cuda", "devices": devices}
    for key, value in settings.items():
        yield f"--{key}"
        yield str(value)


def _method(flags: argparse.Namespace) -> list[str]:
    """Recipe that has these weights, and the weights."""
    weights = {"icsd": flags.ics, "pixel_kd": flags.kd, "correlation": flags.icc}
    given = {term: weight for term, weight in weights.items() if weight is not None}
    if flags.ALW:
        if given.keys() != {"icsd", "pixel_kd"}:
            raise UserError("--ALW weighs ICSD against KD: give --pa_lambda and --pi_lambda")
        method = "aicsd"
    elif "icsd" in given:
        method = "icsd"
    elif "pixel_kd" in given:
        method = "kd"
    else:
        method = "ickd" if given else "none"
    command = ["--method", method]
    for term, weight in given.items():
        command += [f"--terms.{term}.weight", f"{weight:g}"]
    return command


def _data_root(flags: argparse.Namespace) -> Path:
    place = flags.data_root or os.environ.get(DATA_VARIABLE)
    wanted = DATA_HELP[flags.dataset]
    if not place:
        raise UserError(f"no data: give --data-root DIR or set {DATA_VARIABLE} to hold {wanted}")
    root = Path(place)
    if not root.is_dir():
        raise UserError(f"no folder {root}; it must hold {wanted}")
    below = root / flags.dataset
    return below if below.is_dir() else root


def _teacher(flags: argparse.Namespace) -> Path:
    if flags.teacher_path:
        return Path(flags.teacher_path)
    found = sorted(TEACHER_FOLDER.glob("*.pth.tar"))
    if len(found) != 1:
        problem = f"{len(found)} checkpoints" if found else "no checkpoint"
        raise UserError(
            f"{problem} (*.pth.tar) in {TEACHER_FOLDER}/: put the teacher there, or give "
            "--teacher_path FILE (a checkpoint of the released code, or a run of aicsd)"
        )
    return found[0]


def _run(flags: argparse.Namespace) -> list[str]:
    if flags.resume:
        if not RunFolder(flags.resume).config.is_file():
            raise UserError(
                f"--resume: {flags.resume} is not a run folder of aicsd; name the folder that the "
                "interrupted run printed"
            )
        return ["--run", flags.resume, "--resume", "true"]
    parent = Path("run") / flags.dataset / (flags.checkname or f"deeplab-{flags.backbone}")
    number = 0
    while (parent / f"experiment_{number}").exists():
        number += 1
    return ["--run", str(parent / f"experiment_{number}")]
