"""What the tests of a loss are given: one row for each loss, and its inputs, value and gradient."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from draws import draw, draw_mask, draw_valid
from torch import Tensor, nn

from aicsd.methods.contract import LossContract, contract_of
from aicsd.types import IGNORE_INDEX

SHAPES = [(2, 3, 4, 5), (1, 2, 1, 1), (3, 1, 4, 4), (2, 6, 3, 2)]
SHAPE = (2, 4, 6, 5)
MORE_CHANNELS = 3
"""Channels of the teacher's map, where the loss allows another number than the student's."""
Maps = Tensor | dict[str, Tensor]
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """What the suite must know of one loss.

    Args:
        oracle: its value, computed in another way. It takes, by their names, inputs of ``forward``,
            options, and ``module`` (the loss as constructed, where that holds parameters). A float
            is compared, and its central differences with the gradient; of a tensor that has a
            graph, the gradient itself is compared.
        variants: options to test it with.
        loss: its name, where that is not the key of the row.
        maps: names of the maps where the loss compares several.
        refuses: values that an option must refuse, beside unknown words and bad temperatures.
        shape: of the maps of most tests, where the loss needs larger ones.
        blobs: side of the squares of one label; 1: each pixel has its own.
        differs: what does not hold, by the name of the test (``ranks``: that two processes train as
            one), or by ``"test option=value"`` for one variant, and why; "" where it does hold.
    """

    oracle: Callable[..., float | Tensor]
    variants: tuple[Mapping[str, Any], ...] = ({},)
    loss: str = ""
    maps: tuple[str, ...] = ()
    refuses: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    shape: tuple[int, ...] = SHAPE
    blobs: int = 1
    differs: Mapping[str, str] = field(default_factory=dict)


contract_by_name = cache(contract_of)


class Case:
    """One loss with one set of options."""

    def __init__(self, label: str, row: Row, options: Mapping[str, Any]) -> None:
        self.label, self.row, self.options = label, row, dict(options)
        self.name = row.loss or label
        self.contract: LossContract = contract_by_name(self.name)
        self.reads_valid = "valid" in self.contract.inputs and options.get("numerics") != "released"

    def __str__(self) -> str:
        return "-".join([self.label, *self._variant()])

    def _variant(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.options.items()]

    def exception(self, test: str) -> str | None:
        """Why the row declares that a test does not hold; None: it must hold."""
        differs = self.row.differs
        return differs.get(" ".join([test, *self._variant()]), differs.get(test)) or None

    def runs(self, test: str) -> bool:
        """Whether a test is about this loss, and no exception of its row."""
        about = {
            "zero_at_the_teacher": self.contract.needs_teacher,
            "a_teacher_of_another_precision": self.contract.needs_teacher,
            "infinite_logits_of_the_teacher_give_the_right_value_or_none": (
                self.contract.needs in ("probabilities", "logits")
            ),
            "padding_equals_smaller_maps": self.reads_valid,
            "nothing_valid_is_zero": self.reads_valid or "mask" in self.contract.inputs,
        }
        return about.get(test, True) and self.exception(test) is None

    def build(self, inputs: Inputs, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The loss, the same every time, for these maps."""
        widths = {"num_classes": first_of(inputs["student"]).shape[1]}
        for side in {"student", "teacher"} & set(inputs):
            widths[f"{side}_channels"] = first_of(inputs[side]).shape[1]
        widths = {key: widths[key] for key in self.contract.channels}
        torch.manual_seed(0)
        return self.contract.loss(**self.options, **widths).to(dtype)

    def inputs(self, shape: tuple[int, ...] = (), *, valid: bool = True) -> Inputs:
        """What ``forward`` asks for, in float64; ``valid``: whether some pixels are padding."""
        shape = shape or self.row.shape
        batch, channels, *size = shape
        more = 0 if self.contract.same_channels else MORE_CHANNELS
        blob = self.row.blobs
        mask = draw_mask((*shape[:2], -(-shape[2] // blob), -(-shape[3] // blob)))
        mask = mask.repeat_interleave(blob, 1).repeat_interleave(blob, 2)
        mask = mask[:, : shape[2], : shape[3]].contiguous()
        where = draw_valid(shape) if valid else None
        if where is not None:
            mask[~where] = IGNORE_INDEX
            mask[0, 0, 0] = 0
        names = self.row.maps or ("",)
        generator = torch.Generator().manual_seed(0)
        everything: Inputs = {
            "student": {name: draw(shape, 1 + n) for n, name in enumerate(names)},
            "teacher": {
                name: draw((batch, channels + more * (name != "logits"), *size), 11 + n)
                for n, name in enumerate(names)
            },
            "mask": mask,
            "valid": where,
            "image": torch.randint(256, (batch, 3, *size), generator=generator, dtype=torch.uint8),
            "progress": 0.25,
        }
        if not self.row.maps:
            for side in ("student", "teacher"):
                everything[side] = everything[side][""]
        return {name: everything[name] for name in self.contract.inputs}

    def value(self, inputs: Inputs, module: nn.Module | None = None) -> Tensor:
        module = module or self.build(inputs, first_of(inputs["student"]).dtype)
        torch.manual_seed(7)
        result: Tensor = module(**inputs)
        return result

    def gradient(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Value, and gradient by the student's maps, one after the other."""
        inputs = {**inputs, "student": on_maps(leaf_of, inputs["student"])}
        value = self.value(inputs)
        leaves = listed(inputs["student"])
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        parts = [
            torch.zeros_like(leaf) if part is None else part
            for leaf, part in zip(leaves, found, strict=True)
        ]
        return value.detach(), torch.cat([part.flatten() for part in parts])

    def expected(self, inputs: Inputs) -> float | Tensor:
        given: Inputs = {"valid": None, **inputs, **self.options}
        wanted = inspect.signature(self.row.oracle).parameters
        if "module" in wanted:
            given["module"] = self.build(inputs)
        torch.manual_seed(7)
        return self.row.oracle(**{name: given[name] for name in wanted if name in given})

    def expected_gradient(self, inputs: Inputs) -> Tensor | None:
        """That of the oracle, where it has a graph."""
        if not isinstance(self.expected(inputs), Tensor):
            return None
        inputs = {**inputs, "student": on_maps(leaf_of, inputs["student"])}
        value = self.expected(inputs)
        assert isinstance(value, Tensor)
        leaves = listed(inputs["student"])
        found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])


def leaf_of(maps: Tensor) -> Tensor:
    return maps.detach().clone().requires_grad_()


def listed(maps: Maps) -> list[Tensor]:
    return list(maps.values()) if isinstance(maps, dict) else [maps]


def first_of(maps: Maps) -> Tensor:
    return listed(maps)[0]


def on_maps(change: Callable[[Tensor], Tensor], maps: Maps) -> Maps:
    """``change`` of one map, or of each of several."""
    if isinstance(maps, dict):
        return {name: change(each) for name, each in maps.items()}
    return change(maps)


def on_both(change: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """``change`` of the maps of student and teacher; the rest stays."""
    sides: Inputs = {
        key: on_maps(change, inputs[key]) for key in ("student", "teacher") if key in inputs
    }
    return {**inputs, **sides}


def cases(rows: Mapping[str, Row]) -> Iterator[Case]:
    for label, row in rows.items():
        for options in row.variants:
            yield Case(label, row, options)
