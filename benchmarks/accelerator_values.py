"""Whether the package computes on an accelerator what it computes in float64 on the CPU.

The losses come from the rows of the contract tests, so that each one is compared, in every variant.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aicsd.data.classes_file import distinct_color
from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.engine.checkpoint import RunState, load_checkpoint, save_checkpoint
from aicsd.engine.device import open_fabric
from aicsd.engine.step import Training, train_step
from aicsd.methods import list_methods, load_recipe
from aicsd.models import ModelConfig, Segmenter, build_model
from aicsd.run_config import DistillConfig, OptimizerConfig, Precision
from aicsd.runs import RunFolder
from aicsd.teacher import Teacher
from aicsd.types import Batch

Figures = dict[str, Any]
Check = tuple[str, Callable[[], Figures]]
"""Name, and what measures; it raises :class:`WrongValueError` where a value is not right."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BOUNDS = {"float32": 2e-3, "bfloat16": 2e-2, "float16": 1e-2}
"""Relative error of a value, and of a gradient as a whole, against float64."""
SMALLEST = 1e-6
"""Values of less are compared with this error, whatever they are."""
SCALE = {"float32": 1.0, "bfloat16": 1.0, "float16": 2.0**10}
"""Scale of a loss before the backward pass, as in mixed precision."""
CLASSES = Classes(tuple("abcde"), tuple(distinct_color(number) for number in range(5)))
SMALL = {"aspp_channels": 8, "decoder_channels": 8, "low_level_channels": 4, "dropout": 0.0}
STEPS = 4


class WrongValueError(AssertionError):
    """A figure that is not what it must be."""


def loss_cases() -> list[Any]:
    """Every loss with every variant of its options, from the contract tests."""
    place = str(Path(__file__).parents[1] / "tests" / "losses")
    if place not in sys.path:
        sys.path.append(place)
    from contract_cases import cases
    from test_contract import ROWS

    return list(cases(ROWS))


def loss_checks(device: torch.device, large: tuple[int, int, int, int]) -> Iterator[Check]:
    """Value and gradient of every loss in every precision.

    Args:
        device: that computes in the precision.
        large: (B, C, H, W) of the maps.
    """
    for case in loss_cases():
        for name in DTYPES:
            yield f"{case}, {name}", partial(compare_loss, case, name, device, large)
    yield "all losses, torch.compile", partial(compare_compiled, device, large)


def compare_loss(
    case: Any, precision: str, device: torch.device, shape: tuple[int, ...]
) -> Figures:
    """Errors of one loss; the same rounded inputs go to both."""
    inputs, _, value, gradient = reference(case, precision, shape)
    found, found_gradient = on_device(case, inputs, precision, device)
    return compared(precision, value, gradient, found, found_gradient)


def reference(
    case: Any, precision: str, shape: tuple[int, ...]
) -> tuple[dict[str, Any], dict[str, Any], Tensor, Tensor]:
    """Inputs in a precision, the same in float64, and value and gradient of these on the CPU."""
    from contract_cases import SHAPE, on_both

    own = case.row.shape if case.row.shape is not SHAPE else shape
    if "class_weights" in case.options:  # one for each class of the contract tests
        own = (own[0], SHAPE[1], *own[2:])
    inputs = on_both(lambda maps: maps.to(DTYPES[precision]), case.inputs(own))
    exact = on_both(Tensor.double, inputs)
    value, gradient = case.gradient(exact)
    return inputs, exact, value, gradient


def is_random(case: Any, exact: dict[str, Any], value: Tensor) -> bool:
    """Whether a loss draws numbers: a compiled function may draw others."""
    module = case.build(exact)
    torch.manual_seed(8)
    return bool(abs(module(**exact).item() - value.item()) > 1e-9 * max(abs(value.item()), 1e-9))


def on_device(
    case: Any, inputs: Mapping[str, Any], precision: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Value and gradient as a training in mixed precision computes them."""
    leaves, there = moved(inputs, device)
    module = case.build(inputs, torch.float32).to(device)
    scale, dtype = SCALE[precision], DTYPES[precision]
    torch.manual_seed(7)  # as the reference: losses draw on the CPU, whatever the device
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        value = module(**there)
    found = torch.autograd.grad(scale * value, leaves, allow_unused=True, materialize_grads=True)
    return value.detach(), torch.cat([part.flatten().double().cpu() / scale for part in found])


def moved(inputs: Mapping[str, Any], device: torch.device) -> tuple[list[Tensor], dict[str, Any]]:
    """The student's maps as leaves, and all inputs, on ``device``."""
    leaves: list[Tensor] = []

    def move(value: Any, leaf: bool) -> Any:
        if isinstance(value, dict):
            return {name: move(each, leaf) for name, each in value.items()}
        if not isinstance(value, Tensor):
            return value
        value = value.detach().to(device, copy=True)
        if leaf:
            leaves.append(value.requires_grad_())
        return value

    return leaves, {name: move(value, name == "student") for name, value in inputs.items()}


def compared(
    precision: str, value: Tensor, gradient: Tensor, found: Tensor, found_gradient: Tensor
) -> Figures:
    """Errors as figures; refused beyond the bound of the precision."""
    bound = BOUNDS[precision]
    error = abs(found.item() - value.item())
    difference = (found_gradient - gradient).norm().item()
    figures = {
        "value": value.item(),
        "value_error": error / max(abs(value.item()), 1e-30),
        "gradient_error": difference / max(gradient.norm().item(), 1e-30),
    }
    good = error <= bound * abs(value.item()) + SMALLEST
    good = good and difference <= bound * gradient.norm().item() + SMALLEST
    return require(good, figures)


def require(good: bool, figures: Figures) -> Figures:
    """The figures, if they are good.

    Raises:
        WrongValueError: they are not.
    """
    if not good:
        shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        raise WrongValueError(", ".join(shown))
    return figures


def compare_compiled(device: torch.device, shape: tuple[int, ...]) -> Figures:
    """All losses in one compiled function against the same without; on a CPU only traced."""
    modules: list[nn.Module] = []
    inputs: list[dict[str, Any]] = []
    for case in loss_cases():
        given, exact, value, _ = reference(case, "float32", shape)
        if not case.options and not is_random(case, exact, value):
            modules.append(case.build(given, torch.float32).to(device))
            inputs.append(given)

    def values(everything: list[dict[str, Any]]) -> Tensor:
        found = [module(**each) for module, each in zip(modules, everything, strict=True)]
        return torch.stack(found)

    backend = "inductor" if device.type != "cpu" else "eager"
    results = []
    states = [copy.deepcopy(module.state_dict()) for module in modules]
    for function in (values, torch.compile(values, backend=backend)):
        torch._dynamo.reset()
        for module, state in zip(modules, states, strict=True):  # some learn in the forward pass
            module.load_state_dict(state)
        pairs = [moved(each, device) for each in inputs]
        found = function([there for _, there in pairs])
        leaves = [leaf for own, _ in pairs for leaf in own]
        # a map that only weighs others has no gradient
        gradients = torch.autograd.grad(
            found.sum(), leaves, allow_unused=True, materialize_grads=True
        )
        flat = torch.cat([part.flatten().double().cpu() for part in gradients])
        results.append((found.detach().double().cpu(), flat))
    (plain, gradient), (compiled, compiled_gradient) = results
    figures = {
        "losses": len(modules),
        "value_error": float(((compiled - plain).abs() / plain.abs().clamp_min(SMALLEST)).max()),
        "gradient_error": float((compiled_gradient - gradient).norm() / gradient.norm()),
    }
    return require(max(figures["value_error"], figures["gradient_error"]) < 1e-4, figures)


# methods


def random_batch(count: int = 2, side: int = 65) -> Batch:
    """Images and masks as a loader hands them over; the last columns are padding."""
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (count, side, side, 3), generator=random, dtype=torch.uint8)
    mask = torch.randint(0, 5, (count, side, side), generator=random, dtype=torch.uint8)
    valid = torch.ones(count, side, side, dtype=torch.bool)
    valid[..., -4:] = False
    return Batch(image.permute(0, 3, 1, 2), mask.masked_fill(~valid, 255), valid)


def network(backbone: str, seed: int, **options: Any) -> Segmenter:
    """A small network with weights that depend on the seed alone."""
    torch.manual_seed(seed)
    return build_model(ModelConfig(backbone, **{**SMALL, **options}), CLASSES)


def training(method: str, precision: Precision, device: torch.device, backbone: str) -> Training:
    """A small student and teacher, ready to train."""
    config = DistillConfig(run="-", accelerator=device.type, precision=precision)
    fabric = open_fabric(config)
    fabric.launch()
    student, teacher = network(backbone, 0), network(backbone, 1, aspp_channels=16)
    distiller = Distiller(student, load_recipe(method), Teacher(teacher, CLASSES))
    return Training(OptimizerConfig(lr=1e-3), 0, distiller, fabric)


def train(trained: Training, start: int, stop: int) -> list[dict[str, float]]:
    """Losses of the steps from ``start`` to ``stop`` of :data:`STEPS`."""
    found = []
    for step in range(start, stop):
        result = train_step(trained, iter([random_batch()]), step, step / STEPS)
        found.append({name: value.item() for name, value in result.losses.items()})
    return found


def method_checks(
    device: torch.device, precisions: tuple[Precision, ...], backbone: str
) -> Iterator[Check]:
    """Two steps of every method, in float32 against the CPU."""
    for method in list_methods():
        for precision in precisions:
            yield (
                f"two steps of {method}, {precision}",
                partial(two_steps, method, precision, device, backbone),
            )
    yield "a run that goes on from its checkpoint", partial(resumed, device, backbone, False)
    yield "deterministic mode", partial(resumed, device, backbone, True)
    if device.type == "cuda":
        yield "passes as CUDA graphs", partial(graphed, device, backbone)


def graphed(device: torch.device, backbone: str) -> Figures:
    """Steps whose passes are recorded have the losses of steps whose passes are not."""
    plain, recorded = (training("aicsd", "32-true", device, backbone) for _ in range(2))
    recorded.record(*random_batch().image.shape[::2])
    losses = [[step["loss"] for step in train(each, 0, STEPS)] for each in (plain, recorded)]
    error = max(abs(a - b) / max(abs(a), 1e-3) for a, b in zip(*losses, strict=True))
    return require(error < 1e-2, {"error": error, "losses": losses})


def two_steps(method: str, precision: Precision, device: torch.device, backbone: str) -> Figures:
    """Losses are finite, and in float32 those of the CPU."""
    found = train(training(method, precision, device, backbone), 0, 2)
    figures: Figures = {"losses": found}
    finite = all(abs(value) < float("inf") for step in found for value in step.values())
    if precision != "32-true" or device.type == "cpu":
        return require(finite, figures)
    expected = train(training(method, precision, torch.device("cpu"), backbone), 0, 2)
    errors = [
        max(abs(own[name] - value) / max(abs(value), 1e-3) for name, value in step.items())
        for own, step in zip(found, expected, strict=True)
    ]
    figures |= {"error_step_1": errors[0], "error_step_2": errors[1]}
    return require(finite and errors[0] < 1e-2 and errors[1] < 5e-2, figures)


def resumed(device: torch.device, backbone: str, deterministic: bool) -> Figures:
    """Four steps at once, again, and cut in the middle: as equal as two runs at once are."""
    torch.use_deterministic_algorithms(deterministic)
    try:
        begin = time.perf_counter()
        runs = [_four_steps(device, backbone, cut) for cut in (False, False, True)]
        seconds = time.perf_counter() - begin
    finally:
        torch.use_deterministic_algorithms(False)
    first, again, cut = runs
    figures = {
        "difference_again": _distance(first, again),
        "difference_cut": _distance(first, cut),
        "seconds": seconds,
    }
    exact = deterministic or device.type == "cpu"
    # kernels that add in any order differ from run to run; a cut must not add to that
    bound = 0.0 if exact else 1e-3 + 2 * figures["difference_again"]
    right = figures["difference_cut"] <= bound and not (exact and figures["difference_again"])
    return require(right, {**figures, "identical_asked": exact})


def _four_steps(device: torch.device, backbone: str, cut: bool) -> dict[str, Tensor]:
    trained = training("aicsd", "32-true", device, backbone)
    train(trained, 0, STEPS // 2)
    if cut:
        with tempfile.TemporaryDirectory() as place:
            folder = RunFolder(place)
            save_checkpoint(folder, RunState(step=STEPS // 2), trained.state_dict())
            found = load_checkpoint(folder)
        assert found is not None
        trained = training("aicsd", "32-true", device, backbone)
        trained.load_state_dict(found.states)
    train(trained, STEPS // 2, STEPS)
    return {k: v.detach().cpu().clone() for k, v in trained.distiller.student.state_dict().items()}


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest difference of two sets of weights."""
    return max(float((one[key].double() - other[key].double()).abs().max()) for key in one)
