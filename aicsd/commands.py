"""Uses of a trained network, as functions; each is also a command of ``aicsd``.

Their parameters are the flags of the command, and ``Args:`` is its help. Libraries are imported
when a function is called, so that the command line starts quickly.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aicsd.errors import UserError
from aicsd.files import at_home
from aicsd.inputs import (
    Data,
    File,
    Files,
    Model,
    describe_data,
    open_model,
    open_split,
    parse_size,
    pick_device,
)
from aicsd.messages import say
from aicsd.types import EvaluationProtocol, Output

if TYPE_CHECKING:
    from aicsd.data.protocol import SegDataset
    from aicsd.evaluation import Metrics
    from aicsd.exporting import Parity
    from aicsd.formats import Format
    from aicsd.prediction.files import Outcome
    from aicsd.visualization.runs import Network


def evaluate(
    model: Model,
    *,
    data: Data = None,
    teacher_classes: File | None = None,
    protocol: EvaluationProtocol = "standard",
    short_side: int | None = None,
    boundary: bool = False,
    calibration: bool = False,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    window: int = 0,
    overlap: float = 1 / 3,
    json: File | None = None,
    batch_size: int = 4,
    workers: int = 0,
    device: str = "auto",
) -> Metrics:
    """Evaluate a trained model on a split: mIoU, accuracies, boundary IoU, calibration.

    Args:
        model: run folder, model file, exported file such as .onnx, or hf:user/name.
        data: images and labels; default: the validation split of the run.
        teacher_classes: map of the network's classes to those of the data, as for distill: a YAML
            file, or cityscapes_camvid.
        protocol: standard, or released: resize image and labels as the released code does.
        short_side: resize image and labels to this shorter side in pixels; 513 with protocol
            released.
        boundary: compute boundary IoU too.
        calibration: compute mean confidence and expected calibration error too.
        scales: test-time augmentation: scales of the image, with averaged probabilities.
        flip: test-time augmentation: average with the horizontally flipped image.
        window: side of the sliding window over larger images, in pixels; 0: no window,
            except for very large images.
        overlap: overlap of neighbouring windows, as a share of their side, 0 to below 1.
        json: JSON file for the metrics.
        batch_size: images per forward pass.
        workers: data-loading processes.
        device: auto, cpu, cuda or mps.

    Raises:
        UserError: no such model or dataset, classes that differ, or a value out of range.
    """
    from aicsd.evaluation import InferenceConfig, short_side_of, to_json
    from aicsd.evaluation import evaluate as measure
    from aicsd.files import write_text
    from aicsd.teacher import is_nameless, with_classes
    from aicsd.terminal import progress_bar

    inference = InferenceConfig(scales, flip, window, overlap)
    network = open_model(model, device)
    dataset = open_split(data, model)
    if teacher_classes is not None or is_nameless(network.classes):
        network = with_classes(network, dataset.classes, teacher_classes)[0].eval()
    with progress_bar() as bar:
        task = bar.add_task("evaluating", total=len(dataset), note="")
        metrics = measure(
            network,
            dataset,
            batch_size=batch_size,
            workers=workers,
            inference=inference,
            boundary=boundary,
            calibration=calibration,
            short_side=short_side_of(protocol, short_side),
            advance=lambda images: bar.advance(task, images),
        )
    if json is not None:
        write_text(Path(at_home(json)), to_json(metrics.to_dict()))
    return metrics


def predict(
    model: Model,
    images: Files,
    *,
    out: File,
    outputs: tuple[str, ...] = (),
    recursive: bool = False,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    window: int = 0,
    overlap: float = 1 / 3,
    opacity: float = 0.5,
    batch_size: int = 1,
    workers: int = 2,
    device: str = "auto",
) -> list[Outcome]:
    """Run inference on images, folders, videos and pipelines: class-id PNGs and overlays.

    Args:
        model: run folder, model file, exported file such as .onnx, or hf:user/name.
        images: images, folders of images, videos, quoted patterns such as 'photos/**/*.jpg'; on
            the command line, - reads images from standard input.
        out: folder for the results; on the command line, - is standard output.
        outputs: some of ids,overlay,color,probabilities; default: ids,overlay for images, overlay
            for videos, ids on standard output.
        recursive: include images in subfolders; the results keep the subfolders.
        scales: test-time augmentation: scales of the image, with averaged probabilities.
        flip: test-time augmentation: average with the horizontally flipped image.
        window: side of the sliding window over larger images, in pixels; 0: no window,
            except for very large images.
        overlap: overlap of neighbouring windows, as a share of their side, 0 to below 1.
        opacity: opacity of the overlay, 0 to 1.
        batch_size: images of equal size, or frames, in one forward pass.
        workers: threads that read and write during inference; 0: none.
        device: auto, cpu, cuda or mps.

    Returns:
        The outcome of every input: a broken one has an error, and the others are still predicted.

    Raises:
        UserError: no such model or image, results that would overwrite each other, or a value out
            of range.
    """
    from aicsd.evaluation import InferenceConfig
    from aicsd.prediction import (
        PredictConfig,
        count_images,
        find_inputs,
        plan_results,
        predict_files,
    )
    from aicsd.terminal import progress_bar

    inference = InferenceConfig(scales, flip, window, overlap)
    config = PredictConfig(tuple(outputs), opacity, batch_size, workers, inference)
    places = [images] if isinstance(images, str | Path) else images
    folder = Path(at_home(out))
    inputs = find_inputs([at_home(place) for place in places], recursive, folder)
    plan_results(inputs, folder, config)
    network = open_model(model, device)
    config = replace(config, device=str(network.mean.device))
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=count_images(inputs), note="")
        done = predict_files(network, inputs, folder, config, lambda: bar.advance(task))
        return list(done)


class ExportResult(NamedTuple):
    """A file that was exported, and how it compares with the network."""

    path: Path
    format: Format
    size: tuple[int, int] | None
    """Height and width of the one image that it takes; None: any number of any size."""
    parity: Parity
    """Before INT8."""
    calibrated_on: str = ""
    """Number and split of the images that INT8 was calibrated on."""
    evaluated: int = 0
    """Number of images behind the two mIoU."""
    miou: float | None = None
    """mIoU of the network before it was rounded to INT8."""
    int8_miou: float | None = None


def export(
    model: Model,
    *,
    out: File,
    format: str | None = None,
    output: Output = "logits",
    size: str | None = None,
    int8: bool = False,
    calibration_split: str = "train",
    calibration_images: int = 64,
    data: Data = None,
) -> ExportResult:
    """Export a trained model to ONNX, OpenVINO, mobile formats and more, in float or INT8.

    Args:
        model: run folder, model file, checkpoint or hf:user/name.
        out: file to write; its ending selects the format.
        format: name of the format; default: that of the ending.
        output: logits at the size of the image, native logits at the network's stride, or labels
            (arg max).
        size: WIDTHxHEIGHT of the one image that the file takes; required by some formats.
        int8: quantize weights and activations to 8 bits.
        calibration_split: split for the calibration of INT8.
        calibration_images: largest number of its images, spread evenly over it.
        data: split for the mIoU before and after INT8; default: the validation split of the run.

    Raises:
        UserError: no such model, a file that cannot be written, or INT8 without images.
    """
    from aicsd.data.wrappers import Subset
    from aicsd.exporting import check_target, export_model

    path = Path(at_home(out))
    shape = None if size is None else parse_size(size)[::-1]
    target = check_target(path, format, int8, shape)
    calibration = val = None
    if int8:
        if calibration_images < 1:
            raise UserError(f"calibration_images is {calibration_images}; it must be 1 or more")
        calibration = open_split(data, model, calibration_split, "to calibrate INT8 on")
        calibration = Subset(calibration, min(calibration_images, len(calibration)))
        val = open_split(data, model)
    network = open_model(model, "cpu")
    parity = export_model(network, path, output, calibration, shape)
    exported = ExportResult(path, target, shape, parity)
    if calibration is None or val is None:
        return exported
    before, after = (evaluate(m, data=val, batch_size=1, device="cpu") for m in (network, path))
    return exported._replace(
        calibrated_on=f"{len(calibration)} images of {calibration_split}",
        evaluated=len(val),
        miou=before.miou,
        int8_miou=after.miou,
    )


def report(
    runs: Files,
    *,
    out: File,
    teacher: str | None = None,
    images: int = 6,
    evaluate: bool = False,
    data: Data = None,
    device: str = "auto",
) -> Path:
    """Compare runs in one self-contained HTML page.

    Args:
        runs: folders of finished runs.
        out: HTML file to write.
        teacher: run folder or model file; default: the teacher of the runs.
        images: number of images to show, spread evenly over the split.
        evaluate: evaluate every network again on the given data instead of reading metrics.json.
        data: images to show; default: the validation split of the first run.
        device: auto, cpu, cuda or mps.

    Raises:
        UserError: a run that has not finished, or a page that cannot be written.
    """
    from aicsd.benchmark.compared import compare_networks
    from aicsd.visualization.report import measure, write_report

    networks, dataset, notes = _open_compared(runs, teacher, images, data, device)
    if evaluate:
        networks = [measure(network, dataset) for network in networks]
    settings, remarks = compare_networks(networks, remeasured=evaluate)
    first = runs if isinstance(runs, str | Path) else runs[0]
    source = describe_data(data, first)
    path = Path(at_home(out))
    write_report(
        path,
        settings,
        dataset,
        images=images,
        notes=[*notes, *remarks],
        measured_on=source if evaluate else None,
        shown_from=source,
    )
    return path


def visualize(
    runs: Files,
    *,
    out: File,
    teacher: str | None = None,
    images: int = 3,
    data: Data = None,
    device: str = "auto",
) -> list[Path]:
    """Pictures of runs: panels, ICS matrices, intra-class distributions, curves.

    Args:
        runs: folders of finished runs.
        out: folder for the pictures.
        teacher: run folder or model file; without it the one that the runs name.
        images: number of images to show, spread evenly over the split.
        data: images to show; without it the validation split that the first run was trained with.
        device: auto, cpu, cuda or mps.

    Returns:
        The files. Notes on what is missing in them go to standard error.

    Raises:
        UserError: a run that has not finished, or a folder that cannot be written to.
    """
    from aicsd.visualization.gallery import save_gallery
    from aicsd.visualization.views import shown_indices

    networks, dataset, notes = _open_compared(runs, teacher, images, data, device)
    for note in notes:
        say(note)
    return list(save_gallery(networks, dataset, shown_indices(dataset, images), Path(at_home(out))))


def _open_compared(
    runs: Files, teacher: str | None, images: int, data: Data, device: str
) -> tuple[list[Network], SegDataset, list[str]]:
    """Networks, data and remarks of finished runs."""
    from aicsd.runs import RunFolder
    from aicsd.visualization.runs import open_networks

    if images < 1:
        raise UserError(f"images is {images}; it must be 1 or more")
    device = pick_device(device)
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | Path) else runs)]
    found = [RunFolder(path).read() for path in paths]
    dataset = open_split(data, paths[0])
    networks, notes = open_networks(found, teacher, dataset.classes)
    for network in networks:
        if network.model is not None:
            network.model.to(device)
    return networks, dataset, notes
