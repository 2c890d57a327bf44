"""aicsd submit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from aicsd.cli.parser import Command
from aicsd.data.open import DATASETS
from aicsd.errors import UserError
from aicsd.inputs import DataSplit, open_model

SERVERS = {name: entry.server for name, entry in DATASETS.items() if entry.server is not None}


def submit(
    model: str,
    *,
    out: str,
    data: DataSplit | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    window: int = 0,
    overlap: float = 1 / 3,
    device: str = "auto",
) -> int:
    """Write predictions as an archive for the benchmark server of a dataset.

    Args:
        model: run folder or model file.
        out: archive.
        data: split to predict; default: test.
        scales: test-time augmentation: scales of the image, with averaged probabilities.
        flip: test-time augmentation: average with the horizontally flipped image.
        window: side of the sliding window over larger images, in pixels; 0: no window,
            except for very large images.
        overlap: overlap of neighbouring windows, as a share of their side, 0 to below 1.
        device: auto, cpu, cuda or mps.
    """
    from aicsd.data import open_images
    from aicsd.data.open import AUTO, find_name
    from aicsd.evaluation import InferenceConfig
    from aicsd.evaluation.submission import check_submission, write_submission
    from aicsd.models.inference import predict_ids
    from aicsd.terminal import progress_bar

    if data is None or (data.name is None and data.root is None):
        named = " or ".join(SERVERS)
        raise UserError(f"no dataset: give --data.name {named}, and --data.root")
    name = find_name(data.name or AUTO, data.root)
    network, archive, split = open_model(model, device), Path(out), data.split or "test"
    inference = InferenceConfig(scales, flip, window, overlap)
    server = check_submission(name, network.classes, archive)
    images = open_images(name, data.root, split, data.options)
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(images), note="")
        write_submission(
            server,
            images,
            split,
            partial(predict_ids, network, config=inference),
            archive,
            advance=lambda: bar.advance(task),
        )
    print(f"{archive}: {len(images)} predictions, checked")
    return 0


COMMAND = Command(
    submit,
    submit,
    example="aicsd submit runs/aicsd --data.name voc --data.root VOC -o results.tgz",
    notes={"out": ", ".join(f"{known.suffixes[0]} for {name}" for name, known in SERVERS.items())},
)
