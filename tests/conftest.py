"""Fixtures that many tests share: tiny data, tiny models, no download."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from command_runs import CommandRuns

# PyTorch is imported by what needs it: the process that hands out the tests waits 2 s for it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # see _one_thread
gc.disable()  # a third of the collection; pytest_collection_finish enables it again
pytest.register_assert_rewrite("contract_suite", "converted", "resumed", "user_errors")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test first: begun last, one of them would keep a single core busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what is imported, a million objects, out of every later garbage collection."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)  # the usual 700 is a twentieth of the time of the tests


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tests run side by side, and two processes of two threads each on two cores crawl."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks() -> Iterator[None]:
    """Skip ``fsync``: waiting until files are safe from a power cut is a fifth of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _passes_are_timed_once() -> Iterator[None]:
    """Reports measure their milliseconds with 2 forward passes in place of 16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aicsd.evaluation.cost.REPEATS", 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def _packages_are_searched_once() -> Iterator[None]:
    """Fabric searches all installed packages for callbacks whenever it is opened."""
    from lightning_fabric import fabric

    with pytest.MonkeyPatch.context() as patch:
        search = getattr(fabric, "_load_external_callbacks", None)  # private: it may go
        if search is not None:
            patch.setattr(fabric, "_load_external_callbacks", cache(search))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_stack_kept_with_a_seed() -> Iterator[None]:
    """Seed as fast as with a GPU: PyTorch keeps the stack of a call for a GPU to come, in 2 ms."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.xpu, torch.mtia):
            patch.setattr(device, "traceback", SimpleNamespace(format_stack=list), raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signatures_are_parsed_once() -> Iterator[None]:
    """PyTorch parses the signatures of 500 functions of onnxscript for every ONNX file."""
    if importlib.util.find_spec("onnxscript") is None:
        yield
        return
    from onnxscript import values

    function = getattr(values, "TracedOnnxFunction", None)
    parse = vars(function).get("function_ir") if function is not None else None
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(parse, property) and parse.fget is not None:
            patch.setattr(function, "function_ir", property(cache(parse.fget)))
        yield


ALLOWED_SKIPS = Path(__file__).parent / "allowed_skips.txt"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which a test was skipped for a reason that is not on the list."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # a worker of xdist: its controller sees all reports
        return
    lines = ALLOWED_SKIPS.read_text(encoding="utf-8").splitlines()
    allowed = [line for line in lines if line and not line.startswith("#")]
    reasons = {
        report.longrepr[2].removeprefix("Skipped: ")
        for report in reporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
    }
    for reason in sorted(reasons):
        if not any(reason.startswith(known) for known in allowed):
            reporter.write_line(f"skip that tests/allowed_skips.txt does not list: {reason}")
            session.exitstatus = 1


CLASS_NAMES = ("ground", "disc", "bar")


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    """A dataset in the folder layout: 8 train and 4 val images of 64x48 with three classes."""
    return write_folder(tmp_path / "data")


def write_folder(root: Path, counts: dict[str, int] | None = None) -> Path:
    """Discs and bars of fixed colours on noise, so that a tiny network learns something."""
    rng = np.random.default_rng(0)
    (root).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    for split, count in (counts or {"train": 8, "val": 4}).items():
        (root / "images" / split).mkdir(parents=True)
        (root / "masks" / split).mkdir(parents=True)
        for number in range(count):
            image, mask = _scene(rng)
            Image.fromarray(image).save(root / "images" / split / f"{number:03}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number:03}.png")
    return root


def _scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    height, width = 48, 64
    image = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - rng.integers(10, 38)) ** 2 + (columns - rng.integers(10, 30)) ** 2 < 64
    left = int(rng.integers(36, 56))
    bar = (columns >= left) & (columns < left + 6)
    for class_id, where, color in ((1, disc, (220, 60, 40)), (2, bar, (40, 80, 230))):
        image[where], mask[where] = color, class_id
    mask[:2] = 255
    return image, mask


RunCli = Callable[..., tuple[int, str, str]]
"""What the fixture ``run_cli`` gives."""


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> RunCli:
    """Call the command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from aicsd.cli import main

        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        code = stop.value.code
        output = capsys.readouterr()
        return (0 if code is None else int(code)), output.out, output.err

    return run


def one_line(call: Callable[[], object]) -> str:
    """The message of the error of a user that ``call`` makes, which must be one line."""
    from aicsd.errors import UserError

    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


TINY_MODEL: dict[str, Any] = {
    "backbone": "test_resnet",
    "aspp_channels": 8,
    "decoder_channels": 8,
    "low_level_channels": 4,
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` and the runs ``teacher``, ``alone`` and ``distilled``."""
    from tiny_runs import aicsd, distill_command, train_command

    place = tmp_path_factory.mktemp("runs")
    root = write_folder(place / "data")
    aicsd(*train_command(root, place / "teacher", "--epochs", "1"))
    for name, method in (("alone", "none"), ("distilled", "aicsd")):
        more = ("--method", method, "--epochs", "2")
        aicsd(*distill_command(root, place / "teacher", place / name, *more))
    return place


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> CommandRuns:
    """Runs of the command line that tests of several files read."""
    from command_runs import CommandRuns

    return CommandRuns(tmp_path_factory.mktemp("commands"))


@pytest.fixture
def root(made: CommandRuns) -> Path:
    return made.root


@pytest.fixture
def teacher(made: CommandRuns) -> Path:
    return made.teacher


@pytest.fixture
def student(made: CommandRuns) -> Path:
    return made.student


@pytest.fixture
def baseline(made: CommandRuns) -> Path:
    return made.baseline


@pytest.fixture
def distilled(made: CommandRuns) -> Path:
    return made.distilled


@pytest.fixture(scope="session")
def small_reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with a report: 8 steps, 4 per epoch; ``data`` lies beside it."""
    from resumed import small_command
    from tiny_runs import aicsd

    place = tmp_path_factory.mktemp("small")
    root = write_folder(place / "data", {"train": 16, "val": 3})
    aicsd(*small_command(root, place / "reference", "--report_images", "1"))
    return place / "reference"
