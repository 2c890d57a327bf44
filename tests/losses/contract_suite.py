"""Contract of every loss of a recipe; ``test_contract.py`` holds one row for each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from operator import methodcaller
from typing import ClassVar

import pytest
import torch
from contract_cases import (
    SHAPE,
    SHAPES,
    Case,
    Inputs,
    Maps,
    Row,
    cases,
    first_of,
    leaf_of,
    listed,
    on_both,
    on_maps,
)
from draws import LAYOUTS, draw
from torch import Tensor

import aicsd.losses
from aicsd.errors import UserError
from aicsd.losses import list_losses
from aicsd.methods.contract import LossContract, choices, contract_of
from aicsd.types import IGNORE_INDEX


class ContractSuite:
    """The tests; a subclass names its ``rows``."""

    rows: ClassVar[dict[str, Row]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            test = metafunc.function.__name__.removeprefix("test_")
            about = [case for case in cases(self.rows) if case.runs(test)]
            metafunc.parametrize("case", about, ids=str)
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", [name for name, row in self.rows.items() if not row.loss])

    def test_every_loss_has_a_row(self) -> None:
        assert {name for name, row in self.rows.items() if not row.loss} == set(list_losses())
        known = {name for name in dir(self) if name.startswith("test_")}
        for row in self.rows.values():
            assert {f"test_{name.split()[0]}" for name in row.differs} <= known | {"test_ranks"}

    def test_oracle(self, case: Case) -> None:
        shapes = SHAPES if case.row.shape is SHAPE else [case.row.shape]
        if "class_weights" in case.options:  # one weight for each class
            shapes = [case.row.shape]
        for shape in shapes:
            for valid in (False, True):
                inputs = case.inputs(shape, valid=valid)
                expected = float(case.expected(inputs))
                value = case.value(inputs)
                assert value.shape == ()
                assert value.dtype == torch.float64
                assert value.item() == pytest.approx(expected, rel=1e-7, abs=1e-13)
                single = case.value(on_both(Tensor.float, inputs))
                assert single.dtype == torch.float32
                assert single.item() == pytest.approx(expected, rel=2e-3, abs=1e-6)

    def test_gradient(self, case: Case) -> None:
        for valid in (False, True):
            inputs = case.inputs(valid=valid)
            _, gradient = case.gradient(inputs)
            assert float(gradient.abs().max()) > 1e-8
            expected = case.expected_gradient(inputs)
            if expected is not None:
                torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)
                continue
            _check_differences(case, inputs, gradient)

    def test_zero_at_the_teacher(self, case: Case) -> None:
        for dtype in (torch.float32, torch.float64):
            inputs = on_both(methodcaller("to", dtype), case.inputs())
            value, gradient = case.gradient({**inputs, "student": inputs["teacher"]})
            assert abs(float(value)) < 30 * torch.finfo(dtype).eps
            assert float(gradient.abs().max()) < 30 * torch.finfo(dtype).eps

    def test_gradient_goes_to_the_student_and_what_is_trained(self, case: Case) -> None:
        inputs = on_both(leaf_of, case.inputs())
        module = case.build(inputs)
        case.value(inputs, module).backward()
        assert all(maps.grad is None for maps in listed(inputs.get("teacher", {})))
        assert (
            sum(
                float(maps.grad.abs().sum())
                for maps in listed(inputs["student"])
                if maps.grad is not None
            )
            > 0
        )
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name

    def test_the_inputs_stay_as_they_are(self, case: Case) -> None:
        inputs, again = case.inputs(), case.inputs()
        case.gradient(inputs)
        for key, value in again.items():
            if isinstance(value, Tensor | dict):
                for before, after in zip(listed(value), listed(inputs[key]), strict=True):
                    assert torch.equal(before, after)

    def test_padding_neither_counts_nor_learns(self, case: Case) -> None:
        inputs = case.inputs()
        outside = inputs["mask"] == IGNORE_INDEX if "mask" in inputs else None
        if "valid" in inputs:
            outside = ~inputs["valid"]
            if not case.reads_valid:
                assert torch.equal(case.value(inputs), case.value({**inputs, "valid": None}))
                return
        assert outside is not None
        expected = case.value(inputs)
        side = 1e4
        for key in ("student", "teacher"):
            if key in inputs:
                shift = side * torch.linspace(1, 2, 20, dtype=torch.float64)[:, None, None]
                shifted = partial(_shifted, where=outside, shift=shift)
                inputs[key] = on_maps(shifted, inputs[key])
            side = -side
        value, gradient = case.gradient(inputs)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
        shape = first_of(inputs["student"]).shape
        for part in gradient.view(-1, *shape):
            assert bool((part[outside[:, None].expand(shape)] == 0).all())

    def test_padding_equals_smaller_maps(self, case: Case) -> None:
        inputs = case.inputs(valid=False)
        height, width = (side - 2 for side in case.row.shape[2:])
        valid = torch.zeros(case.row.shape[0], *case.row.shape[2:], dtype=torch.bool)
        valid[:, :height, :width] = True
        small = on_both(lambda maps: maps[:, :, :height, :width], inputs)
        small = {
            key: value[..., :height, :width] if key in ("mask", "image") else value
            for key, value in small.items()
        }
        if "mask" in inputs:
            inputs["mask"] = inputs["mask"].masked_fill(~valid, IGNORE_INDEX)
        torch.testing.assert_close(case.value({**inputs, "valid": valid}), case.value(small))

    def test_nothing_valid_is_finite(self, case: Case) -> None:
        inputs = _without_valid(case.inputs())
        for dtype in (torch.float64, torch.float32):
            value, gradient = case.gradient(on_both(methodcaller("to", dtype), inputs))
            assert math.isfinite(float(value))
            assert bool(gradient.isfinite().all())

    def test_nothing_valid_is_zero(self, case: Case) -> None:
        value, gradient = case.gradient(_without_valid(case.inputs()))
        assert float(value) == 0
        assert bool((gradient == 0).all())

    def test_masks_of_another_size_are_taken_by_nearest_pixel(self, case: Case) -> None:
        inputs = case.inputs()
        for size in ((2, 3), (1, 1)):
            large = dict(inputs)
            for key in ("mask", "valid"):
                if inputs.get(key) is not None:
                    large[key] = inputs[key].repeat_interleave(size[0], 1)
                    large[key] = large[key].repeat_interleave(size[1], 2)
            assert torch.equal(case.value(large), case.value(inputs))
        if "mask" in inputs:
            for dtype in (torch.uint8, torch.int32):
                other = {**inputs, "mask": inputs["mask"].to(dtype)}
                assert torch.equal(case.value(other), case.value(inputs))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_small_precisions_are_computed_in_float32(self, case: Case, dtype: torch.dtype) -> None:
        small = on_both(lambda maps: (maps * 20).to(dtype), case.inputs())
        inputs = on_both(Tensor.float, small)
        module = case.build(inputs, torch.float32)
        expected = case.value(inputs, module)
        leaves = on_maps(leaf_of, small["student"])
        value = case.value({**small, "student": leaves}, case.build(inputs, torch.float32))
        value.backward()
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        for maps in listed(leaves):
            assert maps.grad is None or bool(maps.grad.isfinite().all())

    def test_autocast_does_not_lower_the_precision(self, case: Case) -> None:
        inputs = on_both(Tensor.float, case.inputs())
        expected = case.value(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            value = case.value(inputs)
        torch.testing.assert_close(value, expected)

    def test_a_teacher_of_another_precision(self, case: Case) -> None:
        inputs = case.inputs()
        expected = case.value(inputs)
        single = {**inputs, "student": on_maps(Tensor.float, inputs["student"])}
        torch.testing.assert_close(case.value(single), expected.float(), rtol=2e-3, atol=1e-6)
        half = {**inputs, "teacher": on_maps(Tensor.float, inputs["teacher"])}
        assert case.value(half).dtype == torch.float64

    def test_memory_layout_does_not_matter(self, case: Case) -> None:
        inputs = case.inputs()
        value, gradient = case.gradient(inputs)
        for change in LAYOUTS.values():
            again = case.gradient(on_both(change, inputs))
            torch.testing.assert_close(again, (value, gradient), rtol=1e-7, atol=1e-12)

    def test_constant_maps_have_finite_gradients(self, case: Case) -> None:
        inputs = on_both(Tensor.float, case.inputs())
        for number in (0.0, 0.7, 1e4):
            flat = on_maps(partial(torch.full_like, fill_value=number), inputs["student"])
            value, gradient = case.gradient({**inputs, "student": flat})
            assert math.isfinite(float(value))
            assert bool(gradient.isfinite().all())

    def test_extreme_maps_stay_finite(self, case: Case) -> None:
        for size in (50.0, 1e4):
            inputs = on_both(methodcaller("mul", size), on_both(Tensor.sign, case.inputs()))
            value, gradient = case.gradient(on_both(Tensor.float, inputs))
            assert math.isfinite(float(value))
            assert bool(gradient.isfinite().all())

    def test_maps_of_one_pixel_are_finite(self, case: Case) -> None:
        classes = case.row.shape[1]  # class weights are one number for each
        for batch in (1, 2):
            for valid in (False, True):
                inputs = on_both(Tensor.float, case.inputs((batch, classes, 1, 1), valid=valid))
                value, gradient = case.gradient(inputs)
                assert math.isfinite(float(value))
                assert bool(gradient.isfinite().all())

    def test_infinite_logits_of_the_teacher_give_the_right_value_or_none(self, case: Case) -> None:
        inputs = case.inputs()
        logits = inputs["teacher"]
        logits = logits if isinstance(logits, Tensor) else logits["logits"]
        logits[:, 0, :2] = -torch.inf
        with_zeros = case.expected(inputs)
        value, gradient = case.gradient(inputs)
        if math.isfinite(float(with_zeros)):
            assert float(value) == pytest.approx(float(with_zeros), rel=1e-7)
            assert bool(gradient.isfinite().all())
        else:
            assert not math.isfinite(float(value))

    def test_function_equals_module(self, case: Case) -> None:
        function = getattr(aicsd.losses, f"{case.name}_loss")
        inputs = case.inputs()
        maps = [inputs[key] for key in ("student", "teacher") if key in inputs]
        rest = {key: value for key, value in inputs.items() if key not in ("student", "teacher")}
        if "mask" in rest and "teacher" not in inputs:
            maps.append(rest.pop("mask"))
        assert torch.equal(function(*maps, **rest, **case.options), case.value(inputs))
        if not case.options:
            defaults = inspect.signature(function).parameters
            for option, (_, default) in case.contract.options.items():
                assert defaults[option].default == default

    def test_a_state_restored_goes_on_the_same(self, case: Case) -> None:
        inputs = case.inputs()
        module, again = case.build(inputs), case.build(inputs)
        for _ in range(2):
            case.value(inputs, module)
        again.load_state_dict(module.state_dict())
        assert torch.equal(case.value(inputs, again), case.value(inputs, module))

    def test_the_contract_is_declared(self, name: str) -> None:
        contract = contract_of(name)
        assert getattr(aicsd.losses, contract.loss.__name__) is contract.loss
        assert contract.loss.__name__ in dir(aicsd.losses)
        assert contract.needs in ("labels", "probabilities", "logits", "features")
        assert (contract.needs == "labels") == (not contract.needs_teacher)
        assert inspect.getdoc(contract.loss)
        module = inspect.getmodule(contract.loss)
        assert module is not None
        text = inspect.getsource(module)
        assert "(B, " in text
        assert "Raises:" in text

    def test_sizes_that_differ_are_named(self, name: str) -> None:
        case = next(cases({name: self.rows[name]}))
        same = case.contract.same_channels
        for key, shapes in _bad_shapes(case.contract, same).items():
            for own, other, words in shapes:
                inputs = case.inputs((2, 4, 4, 4))
                module = case.build(inputs, torch.float32)
                zeros = partial(methodcaller, "new_zeros", dtype=torch.float32)
                inputs["student"] = on_maps(zeros(own), inputs["student"])
                if key == "teacher":
                    inputs[key] = on_maps(zeros(other), inputs[key])
                else:
                    inputs[key] = torch.ones(other, dtype=inputs[key].dtype)
                for rest in {"mask", "valid"} & set(inputs) - {key}:
                    inputs[rest] = torch.ones(own[0], *own[-2:], dtype=inputs[rest].dtype)
                with pytest.raises(UserError) as caught:
                    module(**inputs)
                message = str(caught.value)
                assert all(part in message for part in (str(own), str(other), words))
                assert "\n" not in message

    def test_bad_options_are_refused(self, name: str) -> None:
        row, contract = self.rows[name], contract_of(name)
        refuses = dict(row.refuses)
        for option, (hint, _) in contract.options.items():
            if choices(hint):
                refuses.setdefault(option, ("nonsense",))
            if option == "temperature":
                refuses.setdefault(option, (0.0, -1.0, math.nan, 1e30, 1e-30))
        case = next(cases({name: row}))
        inputs = case.inputs()
        for option, values in refuses.items():
            for value in values:
                with pytest.raises(UserError, match=option) as caught:
                    Case(name, row, {option: value}).build(inputs)
                assert "\n" not in str(caught.value)
                for allowed in choices(contract.options[option][0]):
                    assert allowed in str(caught.value)


def _without_valid(inputs: Inputs) -> Inputs:
    """The batch with nothing but padding and pixels without a label."""
    empty: dict[str, Callable[[Tensor], Tensor]] = {
        "valid": torch.zeros_like,
        "mask": partial(torch.full_like, fill_value=IGNORE_INDEX),
    }
    return {key: empty[key](value) if key in empty else value for key, value in inputs.items()}


def _shifted(maps: Tensor, where: Tensor, shift: Tensor) -> Tensor:
    """(B, C, H, W) with (C', 1, 1) added where (B, H, W) says."""
    return torch.where(where[:, None], maps + shift[: maps.shape[1]], maps)


def _direction(maps: Tensor, seed: int) -> Tensor:
    return draw(maps.shape, seed, 1.0)


def _check_differences(case: Case, inputs: Inputs, gradient: Tensor) -> None:
    """Central differences of the oracle along two directions."""
    step = 1e-5
    for seed in (20, 21):
        ways = on_maps(partial(_direction, seed=seed), inputs["student"])
        ends = []
        for sign in (step, -step):
            moved = [
                maps + sign * way
                for maps, way in zip(listed(inputs["student"]), listed(ways), strict=True)
            ]
            student: Maps = moved[0]
            if isinstance(inputs["student"], dict):
                student = dict(zip(inputs["student"], moved, strict=True))
            ends.append(float(case.expected({**inputs, "student": student})))
        slope = float(gradient @ torch.cat([way.flatten() for way in listed(ways)]))
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-9)


def _bad_shapes(
    contract: LossContract, same_channels: bool
) -> dict[str, list[tuple[tuple[int, ...], tuple[int, ...], str]]]:
    """Shapes by input: of the student, of the input, and what the message must say."""
    found: dict[str, list[tuple[tuple[int, ...], tuple[int, ...], str]]] = {}
    if contract.needs_teacher:
        found["teacher"] = [
            ((2, 4, 4, 4), (2, 4, 8, 8), "interpolate"),
            ((2, 4, 4, 4), (1, 4, 4, 4), "B"),
            ((3, 4, 4), (3, 4, 4), "(B, "),
            ((2, 4, 4), (2, 4, 4, 4), "(B, "),
        ]
        if same_channels:
            found["teacher"].append(((2, 4, 4, 4), (2, 5, 4, 4), "(B, C, H, W)"))
    if "mask" in contract.inputs:
        found["mask"] = [
            ((2, 4, 4, 4), (1, 4, 4), "mask"),
            ((2, 4, 4, 4), (2, 1, 4, 4), "mask"),
        ]
    if "valid" in contract.inputs:
        found["valid"] = [
            ((2, 4, 4, 4), (1, 4, 4), "valid"),
            ((2, 4, 4, 4), (4, 4), "valid"),
        ]
    return found
