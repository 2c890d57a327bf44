"""Cost of evaluation beside the forward pass, and savings by batched views.

python -m benchmarks.evaluation
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from aicsd.data.classes_file import distinct_color
from aicsd.data.protocol import Classes
from aicsd.evaluation.metrics import confusion_counts
from aicsd.models import ModelConfig, build_model, class_ids
from aicsd.models.inference import InferenceConfig, infer
from benchmarks.common import fastest, report

CASES = (
    (
        "mobilenetv2_050, head of 64",
        ModelConfig("mobilenetv2_050", aspp_channels=64, decoder_channels=64),
        (360, 480),
        11,
    ),
    ("resnet18", ModelConfig("resnet18"), (513, 513), 21),
)


@torch.no_grad()
def seconds_of(config: ModelConfig, size: tuple[int, int], count: int) -> dict[str, float]:
    classes = Classes(tuple(map(str, range(count))), tuple(map(distinct_color, range(count))))
    model = build_model(config, classes).eval()
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, *size), generator=random, dtype=torch.uint8)
    mask = torch.randint(0, count, (1, *size), generator=random, dtype=torch.uint8)
    logits = model(images).logits
    predicted = class_ids(logits, size, model.align_corners)
    both = InferenceConfig(flip=True)
    candidates: dict[str, Callable[[], object]] = {
        "forward": lambda: model(images),
        "largest logit": lambda: class_ids(logits, size, model.align_corners),
        "confusion matrix": lambda: confusion_counts(predicted, mask, count),
        "image and mirror, apart": lambda: infer(model, images, both, 1),
        "image and mirror, one pass": lambda: infer(model, images, both, 2),
    }
    return fastest(candidates, repeats=9)


def main() -> None:
    rows, figures = [], {}
    for name, config, size, count in CASES:
        figures[name] = seconds = seconds_of(config, size, count)
        image = f"{size[1]}x{size[0]}"
        rows += [
            [name, image, part, f"{1000 * time:.2f}", f"{100 * time / seconds['forward']:.1f} %"]
            for part, time in seconds.items()
        ]
    report("evaluation", figures, ["network", "image", "part", "ms", "of the forward pass"], rows)


if __name__ == "__main__":
    main()
