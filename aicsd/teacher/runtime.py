"""Runtimes of the frozen teacher: eager, compiled or OpenVINO."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from aicsd.errors import UserError, one_line
from aicsd.extras import require
from aicsd.formats.openvino import openvino_core
from aicsd.models.segmenter import Segmenter
from aicsd.types import Runtime, SegOutput

Forward = Callable[[Tensor], SegOutput]
"""(B, 3, H, W) uint8 -> logits, and features if the runtime has them."""
LOGITS_ALONE: tuple[Runtime, ...] = ("openvino",)
"""Runtimes that give no features."""
WARM_UP = 3
"""Passes before the recording of a CUDA graph, in which libraries choose their algorithms."""


def start_runtime(model: Segmenter, runtime: Runtime) -> Forward:
    """A frozen model as a function of its images.

    Args:
        model: in evaluation mode.
        runtime: ``eager``: as it is. ``compiled``: by ``torch.compile``, which takes its time at
            the first batch. ``openvino``: logits alone, on a CPU.

    Raises:
        UserError: OpenVINO is not installed, the model is on another device than a CPU, or OpenVINO
            cannot convert it.
    """
    if runtime == "compiled":
        options: dict[str, Any] = {"freezing": True} if model.device.type == "cpu" else {}
        compiled: Forward = torch.compile(model, options=options)
        return compiled
    return _OpenVINO(model) if runtime == "openvino" else model


class TeacherGraph:
    """A frozen network whose forward pass is recorded.

    Args:
        run: (B, 3, H, W) uint8 -> logits and features.
        image: image of the shape and layout of every further batch.
    """

    def __init__(self, run: Forward, image: Tensor) -> None:
        self._image = image.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                run(self._image)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._output: SegOutput = run(self._image)

    def __call__(self, image: Tensor) -> SegOutput:
        """(B, 3, H, W) uint8 -> logits and features, which the next call overwrites."""
        self._image.copy_(image)
        self._graph.replay()
        return self._output


class _LogitsOf(nn.Module):
    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        output: SegOutput = self.model(image)
        return output.logits


class _OpenVINO:
    """A model converted once for every shape of its input."""

    def __init__(self, model: Segmenter) -> None:
        need = "teacher_runtime openvino needs OpenVINO"
        self.openvino = require("openvino", "export", need)
        if model.device.type != "cpu":
            raise UserError(
                f"teacher_runtime openvino runs on a CPU, and the model is on "
                f"{model.device.type}: use eager or compiled"
            )
        self.model = _LogitsOf(model)
        self.compiled: dict[tuple[int, ...], Any] = {}

    def __call__(self, image: Tensor) -> SegOutput:
        shape = tuple(image.shape)
        if shape not in self.compiled:
            self.compiled[shape] = self._compile(image.contiguous())
        (logits,) = self.compiled[shape](image.contiguous().numpy()).values()
        # copied: the next call writes into the same memory
        aligned = self.model.model.align_corners
        return SegOutput(torch.from_numpy(logits.copy()), {}, aligned)

    def _compile(self, image: Tensor) -> Any:
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # it would take bfloat16 where the processor can
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        try:
            with warnings.catch_warnings():  # of tracing; a fixed shape is intended
                warnings.simplefilter("ignore")
                converted = self.openvino.convert_model(
                    self.model, example_input=image, input=list(image.shape)
                )
            return openvino_core().compile_model(converted, "CPU", settings)
        except Exception as error:  # its converter may raise anything on a foreign network
            reason = one_line(error)
            raise UserError(
                f"OpenVINO cannot convert this teacher ({reason}): use teacher_runtime eager"
            ) from error
