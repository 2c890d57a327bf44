"""Networks: any timm backbone with feature maps under a DeepLabV3+ head."""

from aicsd.models.backbone import Backbone
from aicsd.models.build import (
    ModelConfig,
    build_model,
    import_checkpoint,
    load_model,
)
from aicsd.models.deeplabv3plus import DeepLabV3Plus, class_ids, resize
from aicsd.models.segmenter import MapInfo, Segmenter, as_output, map_named, save_model

__all__ = [
    "Backbone",
    "DeepLabV3Plus",
    "MapInfo",
    "ModelConfig",
    "Segmenter",
    "as_output",
    "build_model",
    "class_ids",
    "import_checkpoint",
    "load_model",
    "map_named",
    "resize",
    "save_model",
]
