"""From a config, or a file, to a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aicsd.data.protocol import Classes
from aicsd.errors import UserError
from aicsd.hub import download, is_hub_name
from aicsd.models.deeplabv3plus import DeepLabV3Plus
from aicsd.models.exported import is_exported, load_exported
from aicsd.models.model_file import DECLARED, classes_of, input_of, is_model_file, read_model_file
from aicsd.models.released import is_checkpoint, read_checkpoint
from aicsd.models.segmenter import InputSpec, Origin, Segmenter
from aicsd.runs import MODEL_FILE, OLD_MODEL_FILE, RunFolder


@dataclass(frozen=True)
class ModelConfig:
    """A DeepLabV3+.

    Args:
        backbone: timm architecture, for example resnet101, resnet18 or mobilenetv2_100.
        output_stride: input size over the size of the deepest map: 8, 16 or 32.
        aspp_channels: width of the pyramid pooling; 256 in the paper, 64 for a small student.
        decoder_channels: width of the decoder; 256 in the paper, 64 for a small student.
        low_level_channels: width of the reduced stride-4 map of the decoder.
        dropout: in the head; 0.5 as published, 0 lets narrow networks learn faster in short runs.
        weights: where the backbone starts: none (random), imagenet (timm downloads them), a
            safetensors file with timm's names, or a run or model file of aicsd with the same
            architecture to start the whole network from.
        released_layout: for a MobileNetV2, dilate and pad as the released code does; checkpoints
            of that code need it, ImageNet weights of timm are made for timm's own layout.
    """

    backbone: str = "mobilenetv2_050"
    output_stride: int = 16
    aspp_channels: int = 256
    decoder_channels: int = 256
    low_level_channels: int = 48
    dropout: float = 0.5
    weights: str = "none"
    released_layout: bool = False

    def __post_init__(self) -> None:
        for name in ("aspp_channels", "decoder_channels", "low_level_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it is 0 or more and below 1")


def build_model(config: ModelConfig, classes: Classes) -> Segmenter:
    """A new network for ``classes``."""
    start = Path(config.weights)
    trained = start.is_dir() or (start.is_file() and is_model_file(start))
    net = DeepLabV3Plus(
        config.backbone,
        len(classes.names),
        output_stride=config.output_stride,
        aspp_channels=config.aspp_channels,
        decoder_channels=config.decoder_channels,
        low_level_channels=config.low_level_channels,
        dropout=config.dropout,
        weights="none" if trained else config.weights,
        released_layout=config.released_layout,
    )
    if trained:
        _start_from(net, start)
    # the weights of the whole network will be in the file: where they began does not matter there
    architecture = asdict(replace(config, weights="none"))
    spec = InputSpec(net.backbone.mean, net.backbone.std, multiple=net.backbone.multiple)
    model = Segmenter(
        net, classes, spec, maps=net.maps, align_corners=True, backbone="backbone", min_batch=2,
        origin=Origin("deeplabv3plus", architecture),
    )  # fmt: skip
    if net.backbone.dropped_weights:
        model.notes.append(
            f"{config.weights}: every key of the feature layers is used; left out, of the "
            f"classification head: {', '.join(net.backbone.dropped_weights)}"
        )
    return model


def _start_from(net: DeepLabV3Plus, path: Path) -> None:
    """Continue from a trained network; a classifier for other classes starts anew."""
    state = load_model(path).net.state_dict()
    own = net.state_dict()
    if state["classifier.weight"].shape[0] != net.num_classes:
        state = {k: own[k] if k.startswith("classifier.") else v for k, v in state.items()}
    different = [key for key in own if key not in state or own[key].shape != state[key].shape]
    if different or len(own) != len(state):
        raise UserError(
            f"weights: the model at {path} has another architecture than the one to train "
            f"(first difference: {(different or sorted(set(state) - set(own)))[0]})"
        )
    net.load_state_dict(state)


def load_model(path: str | Path, net: nn.Module | None = None) -> Segmenter:
    """A trained model in evaluation mode.

    Args:
        path: run folder, safetensors file of aicsd, an exported ``.onnx`` or ``.xml``,
            ``hf:user/name`` (on the Hugging Face hub; only its safetensors file is read), or a
            checkpoint (``.pth.tar``, ``.pth``, ``.pt``) of the published AICSD code, which is taken
            to have output stride 16: see :func:`import_checkpoint`.
        net: module that gets the weights of a file which :func:`save_model` wrote for a network
            that aicsd did not build.

    Raises:
        UserError: nothing there, not written by aicsd or the published code, or broken.
    """
    if is_hub_name(path):
        downloaded = download(str(path), MODEL_FILE, OLD_MODEL_FILE)
        return _assemble(downloaded, *read_model_file(downloaded), net)
    path = Path(path)
    if is_exported(path) and path.exists():  # of some formats, a folder
        return load_exported(path)
    file = RunFolder(path).model if path.is_dir() else path
    if not file.is_file():
        hint = f"; the run has not finished: no {MODEL_FILE} in it" if path.is_dir() else ""
        raise UserError(f"no model at {path}{hint}")
    if is_checkpoint(file) and not is_model_file(file):
        return import_checkpoint(file)[0]
    return _assemble(file, *read_model_file(file), net)


def import_checkpoint(
    path: Path, output_stride: int = 16, classes: Classes | None = None
) -> tuple[Segmenter, dict[str, Any]]:
    """A network of the published code in evaluation mode, and what its file tells.

    Args: as of :func:`aicsd.models.released.read_checkpoint`, which also names the errors.

    Returns:
        The network, and ``imported_from``, ``epoch``, ``best_pred`` and ``left_out``.
    """
    header, state = read_checkpoint(path, output_stride, classes)
    return _assemble(path, header, state), header["info"]


def _assemble(
    file: Path, header: dict[str, Any], state: dict[str, Tensor], net: nn.Module | None = None
) -> Segmenter:
    family = header.get("family")
    if family is None and net is None:
        raise UserError(
            f"{file} holds the weights of a network of your own; give the module that they belong "
            "to: aicsd.load_model(path, net=module)"
        )
    if family not in (None, "deeplabv3plus"):
        raise UserError(f"{file} holds a network of the unknown family {family!r}: update aicsd")
    wrong = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if wrong:
        raise UserError(
            f"{file} holds weights that are not finite ({wrong[0]}): its training diverged; train "
            "again with a lower optimizer.lr, or with optimizer.clip"
        )
    try:
        if net is not None and family is None:
            net.load_state_dict(state)
            declared = {key: header[key] for key in DECLARED}
            return Segmenter(net, classes_of(header), input_of(header), **declared).eval()
        # whatever the header says, loading a file must not download another
        options = {**header["architecture"], "weights": "none"}
        if "published_layout" in options:  # its name in the past
            options["released_layout"] = options.pop("published_layout")
        model = build_model(ModelConfig(**options), classes_of(header))
        model.net.load_state_dict(state)
        model = model.with_input(input_of(header))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{file} does not hold the model that its header names: {reason}"
        ) from error
    return model.eval()
