"""A first config for own data: values chosen from images and machine, with reasons."""

from __future__ import annotations

import math
import shlex
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aicsd.data.open import AUTO, find_name
from aicsd.data.padding import padding_share
from aicsd.data.settings import AugmentConfig
from aicsd.errors import UserError
from aicsd.files import write_text
from aicsd.starter_facts import UNLABELLED, Facts, Machine, read_facts, this_machine

MULTIPLE = 32
"""Sides of crops are multiples of it: the largest output stride of a backbone."""
LARGEST_CROP = {"gpu": 512, "cpu": 256}
LITTLE_PADDING = 0.25
STEPS = {"gpu": 6000, "cpu": 1500}
"""Training steps to aim at."""
BATCH = {"gpu": 16, "cpu": 8}
GB_PER_IMAGE = 1.5
"""GPU memory for an image of 512x512 while a ResNet-101 teacher is trained, in GB; a rule of thumb
on the safe side."""
RARE = 0.01
"""Share of the labelled pixels below which a class counts as rare."""
MANY_CLASSES = 20


class Choice(NamedTuple):
    """A setting of the config, by its dotted key."""

    key: str
    value: Any
    reason: str = ""


class Start(NamedTuple):
    """A config that was written."""

    path: Path
    choices: list[Choice]
    commands: list[str]
    """Commands of the shell, in the order in which to run them."""


def write_config(root: str, out: str | None = None, machine: Machine | None = None) -> Start:
    """Write a config for the folder dataset at ``root``.

    Args:
        root: folder of the dataset.
        out: YAML file to write; the folder's name with ``.yaml``, in the current folder, without
            it.
        machine: resources for the training; default: this machine.

    Raises:
        UserError: images that cannot be used, fewer than two of them, or a file that is there.
    """
    path = Path(out or f"{Path(root).expanduser().resolve().name}.yaml").expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {path} must end in .yaml")
    if path.exists():
        raise UserError(f"{path} exists: remove it, or give another file with --out")
    name = find_name(AUTO, root)
    facts = read_facts(name, root)
    machine = machine or this_machine()
    choices = choose(facts, machine, name, root)
    write_text(path, render(choices, facts, machine))
    return Start(path, choices, next_commands(choices, facts, root, path))


def choose(facts: Facts, machine: Machine, name: str, root: str) -> list[Choice]:
    """Every setting of the config, in the order of its file."""
    augment, crop_reason = _augment(facts, machine)
    batch, batch_reason = _batch(facts, machine, augment.crop)
    repeat = 1
    if facts.unlabelled:
        repeat = min(max(round(facts.unlabelled / facts.images), 1), 8)
    shown = facts.images * repeat + facts.unlabelled
    per_epoch = max(shown // batch, 1)
    epochs = max(round(STEPS[machine.kind] / per_epoch), 10)
    return [
        *_student(facts, machine),
        Choice(
            "method",
            "dist",
            "It gained most for its time on CamVid, in trainings of up to 1800 steps; aicsd is the "
            "method of the paper. Both need only the teacher's logits. none trains the student "
            "alone: train that first, since a distilled student has to beat it.",
        ),
        *_terms(facts),
        Choice("data.name", name),
        Choice("data.root", root),
        *_unlabelled(facts, repeat),
        Choice("data.batch_size", batch, batch_reason),
        *_loading(facts, machine),
        Choice("data.augment.crop", augment.crop, crop_reason),
        Choice("data.augment.scale_min", augment.scale_min),
        Choice("data.augment.scale_max", augment.scale_max),
        Choice("data.augment.flip", 0.5, "Use 0 if left and right differ in meaning, as in text."),
        Choice("data.augment.jitter", 0.3),
        *_optimizer(machine),
        Choice(
            "epochs",
            epochs,
            f"An epoch has {per_epoch} step{'s' * (per_epoch > 1)} ({shown} "
            f"images, batch {batch}), the run {epochs * per_epoch}; "
            f"{_where(machine)} this config aims at {STEPS[machine.kind]}, and at 10 epochs or "
            "more.",
        ),
        Choice("val_every", max(epochs // 10, 1), "The run validates about ten times."),
    ]


def _where(machine: Machine) -> str:
    return "without a GPU" if machine.gpu is None else "on a GPU"


def _augment(facts: Facts, machine: Machine) -> tuple[AugmentConfig, str]:
    """The largest crop, up to that of the machine, with little padding."""
    largest, short = LARGEST_CROP[machine.kind], facts.short_side
    scales = (0.5, 2.0) if short <= 3 * largest else (0.25, 1.0)
    sides = range(largest, 2 * MULTIPLE - 1, -MULTIPLE)
    fitting = [AugmentConfig(crop=side, scale_min=scales[0], scale_max=scales[1]) for side in sides]
    chosen = next(
        (config for config in fitting if padding_share(facts.sizes, config) <= LITTLE_PADDING),
        fitting[-1],
    )
    share = padding_share(facts.sizes, chosen)
    reason = (
        f"The shorter side of a typical image has {short} pixels. {100 * share:.0f} % of a crop is "
        f"padding on average. The largest crop {_where(machine)} is {largest} here."
    )
    if scales[0] < 0.5:
        reason += (
            " The images are much larger than the crop, so they are scaled down to 0.25 to 1 of "
            "their size; smaller copies of the images would train faster."
        )
    return chosen, reason


def _batch(facts: Facts, machine: Machine, crop: int) -> tuple[int, str]:
    wanted = BATCH[machine.kind]
    batch, reason = wanted, f"The usual size {_where(machine)}."
    if machine.gpu is not None:
        fits = int(0.8 * machine.gpu_memory_gb / (GB_PER_IMAGE * (crop / 512) ** 2))
        if fits < batch:
            batch = 1 << max(fits.bit_length() - 1, 1)
            reason = (
                f"{machine.gpu_memory_gb:.0f} GB of GPU memory suffice for it with a ResNet-101 "
                "teacher, by a rule of thumb."
            )
    if facts.images < 4 * batch:
        batch = min(batch, max(1 << max((facts.images // 4).bit_length() - 1, 0), 2))
        reason = f"At most a quarter of the {facts.images} training images is in a batch."
    return batch, f"{reason} Halve it if memory runs out."


def _student(facts: Facts, machine: Machine) -> list[Choice]:
    many = len(facts.classes) > MANY_CLASSES
    large = machine.gpu is not None or many
    reason = (
        f"This suits {len(facts.classes)} classes {_where(machine)}. mobilenetv2_050 is half as "
        "wide and faster; mobilenetv2_100 is more accurate."
    )
    head = "A narrow head suits a small backbone; the paper's width is 256."
    return [
        Choice("student.backbone", "mobilenetv2_100" if large else "mobilenetv2_050", reason),
        Choice(
            "student.weights",
            "imagenet",
            "timm downloads them once. Offline, use none or a safetensors file with timm's names.",
        ),
        Choice("student.aspp_channels", 64, head),
        Choice("student.decoder_channels", 64),
    ]


def _terms(facts: Facts) -> list[Choice]:
    """Weights of the classes where one is rare."""
    total = sum(facts.pixels)
    shares = {
        name: pixels / total
        for name, pixels in zip(facts.classes, facts.pixels, strict=True)
        if pixels
    }
    rare = min(shares, key=lambda name: shares[name], default=None)
    if rare is None or shares[rare] >= RARE:
        return []
    percent = f"{100 * shares[rare]:.2g}"
    return [
        Choice(
            "terms.cross_entropy.class_weights",
            "log_balanced",
            f"Class imbalance: {rare!r} has {percent} % of the labelled pixels, while mIoU "
            "counts every class alike.",
        )
    ]


def _unlabelled(facts: Facts, repeat: int) -> list[Choice]:
    if not facts.unlabelled:
        return []
    return [
        Choice(
            "data.train_split",
            f"train+{UNLABELLED}",
            f"The student learns from the teacher on the {facts.unlabelled} images without labels.",
        ),
        Choice(
            "data.labelled_repeat",
            repeat,
            "This balances images with and without labels in an epoch.",
        ),
    ]


def _loading(facts: Facts, machine: Machine) -> list[Choice]:
    spare = machine.cores - 1
    workers = min(spare, 8) if machine.gpu is not None else min(spare // 2, 4)
    reason = f"The machine has {machine.cores} core{'s' * (machine.cores > 1)}; " + (
        f"the network needs {'most of them' if machine.cores > 1 else 'it'}."
        if machine.gpu is None
        else "one is left for the training loop."
    )
    choices = [Choice("data.workers", workers, reason)]
    # image and mask, decoded: 4 bytes a pixel; images without labels are taken to be as large
    pixels = sum(height * width * count for (height, width), count in facts.sizes.items())
    need = 4 * pixels * (1 + facts.unlabelled / facts.images) / 1e9
    if machine.memory_gb is not None and need <= machine.memory_gb / 4:
        megabytes = math.ceil(need * 1000) + 1
        choices.append(
            Choice(
                "data.cache_mb",
                megabytes,
                "The decoded training images fit into a "
                f"quarter of the memory ({machine.memory_gb:.0f} GB).",
            )
        )
    return choices


def _optimizer(machine: Machine) -> list[Choice]:
    if machine.gpu is None:
        return [
            Choice("optimizer.name", "adamw", "adamw learns faster than sgd in a short run."),
            Choice("optimizer.lr", 0.001),
            Choice("optimizer.head_lr_factor", 4.0),
            Choice("optimizer.weight_decay", 0.01),
        ]
    choices = [
        Choice("optimizer.name", "sgd", "sgd is usual for long runs from ImageNet weights."),
        Choice("optimizer.lr", 0.007),
        Choice("optimizer.warmup", 0.03, "This avoids large steps at the start."),
    ]
    if machine.bfloat16:
        choices.append(
            Choice(
                "precision",
                "bf16-mixed",
                f"{machine.gpu} computes in bfloat16: faster, and half the memory for maps.",
            )
        )
    return choices


def render(choices: list[Choice], facts: Facts, machine: Machine) -> str:
    """The text of the config: nested keys, each with its reason above it."""
    memory = "" if machine.memory_gb is None else f", {machine.memory_gb:.0f} GB of memory"
    gpu = "no GPU" if machine.gpu is None else f"{machine.gpu}, {machine.gpu_memory_gb:.0f} GB"
    lines = _comment(
        f"Written by aicsd init from {facts.images} training images with labels, "
        f"{facts.unlabelled} without, {len(facts.classes)} classes; {machine.cores} "
        f"core{'s' * (machine.cores > 1)}{memory}, {gpu}. Change whatever you know better.",
        "",
    )
    above: list[str] = []
    for choice in choices:
        *sections, name = choice.key.split(".")
        shared = 0
        while shared < min(len(above), len(sections)) and above[shared] == sections[shared]:
            shared += 1
        lines += [f"{'  ' * depth}{sections[depth]}:" for depth in range(shared, len(sections))]
        above, indent = sections, "  " * len(sections)
        lines += _comment(choice.reason, indent)
        value = yaml.safe_dump(choice.value, default_flow_style=True, width=10**6).split("\n")[0]
        lines.append(f"{indent}{name}: {value}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        96,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,
    )


def next_commands(choices: list[Choice], facts: Facts, root: str, path: Path) -> list[str]:
    """Commands of a comparison: teacher, student alone, distilled student, report."""
    chosen = {choice.key: choice.value for choice in choices}
    config, place = shlex.quote(str(path)), shlex.quote(root)
    alone = ""
    if facts.unlabelled:  # labels alone, for as many steps
        shown = facts.images * chosen["data.labelled_repeat"] + facts.unlabelled
        repeat = max(round(shown / facts.images), 1)
        alone = f" --data.train_split train --data.labelled_repeat {repeat}"
    return [
        f"aicsd train --config folder/teacher --data.root {place} "
        f"--data.augment.crop {chosen['data.augment.crop']} "
        f"--data.batch_size {chosen['data.batch_size']} --run runs/teacher",
        f"aicsd distill --config {config} --method none{alone} --run runs/alone",
        f"aicsd distill --config {config} --teacher runs/teacher --run runs/distilled",
        "aicsd report runs/alone runs/distilled -o report.html",
    ]
