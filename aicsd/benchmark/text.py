"""Cost and latency as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from aicsd.benchmark.cost import Cost
from aicsd.benchmark.latency import Latency


def latency_text(models: Mapping[str, Latency]) -> str:
    """The table of :func:`aicsd.benchmark.latency.measure_latency`."""
    header = ["model", "gives", "ms, min", "ms, median", "images/s", "MB", "parameters", "GMACs"]
    rows = [
        [
            name,
            figure.gives,
            f"{1000 * figure.minimum:.2f}",
            f"{1000 * figure.median:.2f}",
            f"{figure.images_per_second:.1f}",
            f"{figure.megabytes:.1f}",
            _millions(figure.parameters),
            _gmacs(figure.gmacs),
        ]
        for name, figure in models.items()
    ]
    return _text(_table(header, rows))


def cost_text(cost: Cost) -> str:
    """The tables of :func:`aicsd.benchmark.cost.measure_cost`."""
    return _text(
        [
            f"data: {cost.data}",
            *cost.notes,
            f"machine: {cost.machine_line}",
            "",
            *_networks(cost),
            "",
            *_step(cost),
            *_memory(cost),
            _whole_run(cost),
            "",
            *_switches(cost),
        ]
    )


def _networks(cost: Cost) -> Iterator[str]:
    side, (width, height) = cost.crop, cost.image_size
    crop, image = f"GMACs, crop {side}x{side}", f"GMACs, image {width}x{height}"
    rows = [
        [
            name,
            network.backbone,
            _millions(network.parameters),
            _gmacs(network.gmacs_crop),
            _gmacs(network.gmacs_image),
        ]
        for name, network in (("teacher", cost.teacher), ("student", cost.student))
        if network is not None
    ]
    return _table(["network", "backbone", "parameters", crop, image], rows)


def _step(cost: Cost) -> Iterator[str]:
    rows = [
        [name, f"{1000 * seconds:.1f}", f"{100 * seconds / cost.step:.1f} %"]
        for name, seconds in [*cost.parts.items(), ("step", cost.step)]
    ]
    yield from _table(["part of a step", "ms", "share"], rows)
    yield (
        f"{cost.measured_steps} steps of {cost.batch_size} images measured; "
        f"{cost.images_per_second:.1f} images/s; one process loads the batches of a step in "
        f"{1000 * cost.load:.1f} ms"
    )


def _memory(cost: Cost) -> Iterator[str]:
    memory = cost.memory
    if memory.peak is not None and memory.before is not None:
        yield (
            f"peak memory {_mib(memory.peak)} ({memory.measure}; {_mib(memory.before)} of it "
            "before the networks were built)"
        )
    yield f"the student keeps {_mib(memory.kept_calculated)} for the backward pass (calculated)"


def _whole_run(cost: Cost) -> str:
    run = cost.run
    if run is None:
        return "whole run: unknown without the number of images; give --images N"
    teacher = f" + one of the teacher {_duration(run.teacher)}" if cost.teacher else ""
    return (
        f"whole run: {_duration(run.total)} = {run.steps} steps {_duration(run.training)} + "
        f"{run.validations} validation{'s' * (run.validations > 1)} {_duration(run.validation)}"
        f"{teacher}"
    )


def _switches(cost: Cost) -> Iterator[str]:
    saves = "saves of the run" if cost.run else "saves of a step"
    rows = [
        [
            f"--{switch.setting}",
            "-" if switch.step is None else f"{1000 * switch.step:.1f}",
            f"{100 * switch.saved:.1f} %",
            switch.how,
        ]
        for switch in cost.switches
    ]
    return _table(["switch", "step, ms", saves, "how known"], rows)


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table: columns of words to the left, of numbers to the right."""
    columns = []
    for title, *cells in zip(header, *rows, strict=True):
        width = max(map(len, (title, *cells)))
        is_words = not any(cell[:2].strip("-")[:1].isdigit() for cell in cells)
        align = str.ljust if is_words else str.rjust
        columns.append([align(cell, width) for cell in (title, *cells)])
    for line in zip(*columns, strict=True):
        yield "  ".join(line).rstrip()


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters else "-"


def _gmacs(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
