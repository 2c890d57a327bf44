"""Calculate the cost of a training: no data, no GPU, no computation on real tensors.

    python scripts/training_cost.py --config aicsd/configs/voc/aicsd.yaml --images 1464

Counts the floating-point operations of a step and the bytes that it keeps for the backward pass,
on tensors without storage. Memory: weights, gradients and momentum of the student, weights of the
teacher, and kept activations; what the allocator and the convolution algorithms add is not in it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from configs import read_settings

from aicsd.benchmark.counts import kept_bytes_and_flops
from aicsd.data import cityscapes, voc

GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="config of aicsd distill")
    parser.add_argument("--backbone", help="of the student, instead of the config's")
    parser.add_argument("--teacher", default="resnet101", help="backbone of the teacher")
    parser.add_argument("--images", type=int, required=True, help="training images")
    parser.add_argument(
        "--tflops", type=float, default=10.0, help="sustained rate of the GPU, in 10^12 a second"
    )
    options = parser.parse_args()
    config = read_settings(options.config)
    student = replace(config.student, backbone=options.backbone or config.student.backbone)
    teacher = replace(student, backbone=options.teacher)
    classes = {"voc": voc, "cityscapes": cityscapes}[config.data.name].CLASSES
    batch, side = config.data.batch_size, config.data.augment.crop
    kept, flops, weights = kept_bytes_and_flops(student, classes, batch, side, trains=True)
    _, extra_flops, extra_weights = kept_bytes_and_flops(teacher, classes, batch, side, False)
    steps = config.epochs * (options.images // batch)
    print("| part | 10^12 operations a step | GiB | hours |")
    print("| --- | --- | --- | --- |")
    for name, operations, size in (
        (f"{student.backbone} alone", flops, kept + 3 * weights),
        (
            f"with teacher {teacher.backbone}",
            flops + extra_flops,
            kept + 3 * weights + extra_weights,
        ),
    ):
        hours = operations * steps / (options.tflops * 1e12) / 3600
        print(f"| {name} | {operations / 1e12:.2f} | {size / GIB:.1f} | {hours:.1f} |")
    print(f"{steps} steps of {batch} images, {side}x{side}; {options.tflops:g} x 10^12 a second")


if __name__ == "__main__":
    main()
