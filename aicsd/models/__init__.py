"""Networks: input specs, named maps, building and loading."""

from typing import TYPE_CHECKING

from aicsd._lazy import on_first_use

if TYPE_CHECKING:
    from aicsd.models.backbone import Backbone
    from aicsd.models.build import build_model, without_names, wrap_module
    from aicsd.models.deeplabv3plus import DeepLabV3Plus
    from aicsd.models.inference import InferenceConfig, image_batch, infer, predict_ids
    from aicsd.models.input_spec import InputSpec
    from aicsd.models.load import is_there, load_model
    from aicsd.models.maps import MapInfo, as_output, class_ids, evaluating, map_named, resize
    from aicsd.models.model_file import save_model
    from aicsd.models.segmenter import Origin, Segmenter
    from aicsd.models.settings import ModelConfig
    from aicsd.models.sources.released import import_checkpoint
    from aicsd.models.taps import Tap, Tapped

_HOMES = {
    "aicsd.models.backbone": ("Backbone",),
    "aicsd.models.build": ("build_model", "without_names", "wrap_module"),
    "aicsd.models.deeplabv3plus": ("DeepLabV3Plus",),
    "aicsd.models.inference": ("InferenceConfig", "image_batch", "infer", "predict_ids"),
    "aicsd.models.load": ("is_there", "load_model"),
    "aicsd.models.maps": ("MapInfo", "as_output", "class_ids", "evaluating", "map_named", "resize"),
    "aicsd.models.model_file": ("save_model",),
    "aicsd.models.input_spec": ("InputSpec",),
    "aicsd.models.segmenter": ("Origin", "Segmenter"),
    "aicsd.models.settings": ("ModelConfig",),
    "aicsd.models.sources.released": ("import_checkpoint",),
    "aicsd.models.taps": ("Tap", "Tapped"),
}
"""Module -> the names of this package that live in it; settings are read without PyTorch."""

__all__ = [
    "Backbone",
    "DeepLabV3Plus",
    "InferenceConfig",
    "InputSpec",
    "MapInfo",
    "ModelConfig",
    "Origin",
    "Segmenter",
    "Tap",
    "Tapped",
    "as_output",
    "build_model",
    "class_ids",
    "evaluating",
    "image_batch",
    "import_checkpoint",
    "infer",
    "is_there",
    "load_model",
    "map_named",
    "predict_ids",
    "resize",
    "save_model",
    "without_names",
    "wrap_module",
]

if not TYPE_CHECKING:
    __getattr__ = on_first_use(__name__, _HOMES)
