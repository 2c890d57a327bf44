"""aicsd import."""

from __future__ import annotations

import sys
from pathlib import Path

from aicsd.cli.parser import Command
from aicsd.errors import UserError


def import_checkpoint(
    checkpoint: str, *, out: str, output_stride: int = 16, classes: str | None = None
) -> int:
    """Convert a checkpoint of the released AICSD code into a model file.

    Args:
        checkpoint: NAME.pth.tar, .pth or .pt.
        out: safetensors file to write.
        output_stride: output stride of the training, 8 or 16; the weights do not contain it.
        classes: file with one class name per line; default: VOC for 21 and Cityscapes for 19
            classes.
    """
    from aicsd.data.classes_file import read_classes
    from aicsd.models import import_checkpoint as read
    from aicsd.models import save_model

    source, target = Path(checkpoint), Path(out)
    if target.suffix != ".safetensors":
        raise UserError(f"out: {target} must end in .safetensors")
    if target.exists():
        raise UserError(f"out: {target} exists; choose another file or remove it")
    names = read_classes(Path(classes)) if classes is not None else None
    model, info = read(source, output_stride, names)
    save_model(model, target, info)
    told = [f"{key} {info[key]:.6g}" for key in ("epoch", "best_pred") if info[key] is not None]
    print(
        f"{target}: {model.name}, {len(model.classes.names)} classes "
        f"({model.classes.names[0]} to {model.classes.names[-1]}), "
        f"{', '.join([f'{model.num_parameters() / 1e6:.2f} M parameters', *told])}"
    )
    if info["left_out"]:
        print(
            f"{source}: left out, as no logit depends on them: {', '.join(info['left_out'])}",
            file=sys.stderr,
        )
    return 0


COMMAND = Command(
    import_checkpoint,
    import_checkpoint,
    example="aicsd import NAME.pth.tar --out teacher.safetensors",
)
