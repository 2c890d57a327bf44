"""Networks: what they want of an image, what they offer, how they are built and loaded."""

from aicsd.models.backbone import Backbone
from aicsd.models.build import ModelConfig, build_model, wrap_module
from aicsd.models.deeplabv3plus import DeepLabV3Plus
from aicsd.models.inference import InferenceConfig, image_batch, infer, predict_ids
from aicsd.models.load import is_there, load_model
from aicsd.models.maps import MapInfo, as_output, class_ids, evaluating, map_named, resize
from aicsd.models.model_file import save_model
from aicsd.models.segmenter import InputSpec, Origin, Segmenter
from aicsd.models.sources.released import import_checkpoint

__all__ = [
    "Backbone",
    "DeepLabV3Plus",
    "InferenceConfig",
    "InputSpec",
    "MapInfo",
    "ModelConfig",
    "Origin",
    "Segmenter",
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
    "wrap_module",
]
