"""Predictions as files: of images, folders, videos and pipelines."""

from aicsd.prediction.files import Outcome, count_images, predict_files
from aicsd.prediction.inputs import Input, find_inputs, plan_results
from aicsd.prediction.network import Prediction, predict_images
from aicsd.prediction.settings import OUTPUTS, PredictConfig, read_outputs
from aicsd.prediction.stream import predict_stream, read_files, read_stream, stream_output

__all__ = [
    "OUTPUTS",
    "Input",
    "Outcome",
    "PredictConfig",
    "Prediction",
    "count_images",
    "find_inputs",
    "plan_results",
    "predict_files",
    "predict_images",
    "predict_stream",
    "read_files",
    "read_outputs",
    "read_stream",
    "stream_output",
]
