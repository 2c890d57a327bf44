"""Laws of the source: who may import whom, sizes, and what documentation promises."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import aicsd.losses
from aicsd.methods import list_methods
from aicsd.run_config import DistillConfig
from aicsd.run_settings import AGAINST_DIVERGENCE, PROCESSES, UNIMPORTANT
from aicsd.runs import RunFolder
from aicsd.settings import leaves

PACKAGE = Path(__file__).parents[1] / "aicsd"
LAYERS = (
    ("types", "errors", "messages", "telemetry", "_lazy", "_version"),
    ("yaml_file", "settings", "run_settings", "extras"),
    ("files", "terminal", "benchmark.statistics"),
    ("config",),
    ("runs", "tensor_files"),
    ("hub",),
    ("hub_push",),
    ("images",),
    ("videos",),
    ("legend",),
    ("data",),
    ("formats",),
    ("models",),
    ("losses",),
    ("teacher",),
    ("schedules",),
    ("methods",),
    ("terms",),
    ("distiller",),
    ("evaluation",),
    ("visualization",),
    ("prediction",),
    ("exporting",),
    ("run_config",),
    ("benchmark.table", "benchmark.latency"),
    ("benchmark.compared", "benchmark.render"),
    ("inputs", "catalog", "starter_facts"),
    ("starter",),
    ("commands",),
    ("engine",),
    ("api",),
    ("benchmark",),
    ("cli",),
    ("released", "__init__", "__main__"),
)
"""Lowest first. A module imports from layers below it and from its own unit.

What reads a run is below ``engine``, so that it imports no training.
"""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """``data/open.py`` -> ``data.open``; a package is its ``__init__``'s folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def unit_of(module: str) -> tuple[int, str]:
    """Layer and name of the most specific entry of ``LAYERS`` that holds ``module``."""
    found = [
        (len(unit), rank, unit)
        for rank, units in enumerate(LAYERS)
        for unit in units
        if module == unit or module.startswith(f"{unit}.")
    ]
    assert found, f"aicsd.{module} has no place in LAYERS"
    _, rank, unit = max(found)
    return rank, unit


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Full names of everything imported, also inside functions; of aicsd: with its submodule."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                place = PACKAGE.joinpath(*full.split(".")[1:])
                is_module = place.with_suffix(".py").is_file() or place.is_dir()
                own = str(node.module).split(".")[0] == "aicsd"
                yield full if own and is_module else str(node.module)


def internal_imports(path: Path) -> set[str]:
    found = {name for name in imports(path) if name.split(".")[0] == "aicsd"}
    # the package itself is at the top; __version__ is the one thing that it hands on
    return {name.removeprefix("aicsd.") if name != "aicsd" else "_version" for name in found}


def top_level(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)


def part(name: str) -> list[Path]:
    place = PACKAGE / name
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


def test_imports_go_only_to_lower_layers() -> None:
    for path in modules():
        rank, unit = unit_of(name_of(path))
        for imported in internal_imports(path):
            other_rank, other_unit = unit_of(imported)
            assert other_rank < rank or other_unit == unit, f"{name_of(path)} imports {imported}"


def test_the_law_sees_imports_of_every_kind(tmp_path: Path) -> None:
    source = "import aicsd.cli\ndef f():\n    from aicsd.engine import fit\nfrom aicsd import api\n"
    (tmp_path / "m.py").write_text(source)
    assert internal_imports(tmp_path / "m.py") == {"cli", "engine.fit", "api"}


def test_losses_know_nothing_of_the_package() -> None:
    for path in part("losses"):
        for imported in internal_imports(path):
            assert imported in ("types", "errors") or imported.startswith("losses"), path
        assert top_level(path) <= {"aicsd", "torch"}, path


@pytest.mark.parametrize("name", ["schedules", "types"])
def test_pure_modules_stay_pure(name: str) -> None:
    (path,) = part(name)
    assert not internal_imports(path)
    assert top_level(path) <= {"torch"}


@pytest.mark.parametrize(
    "name", ["evaluation", "visualization", "prediction", "models", "data", "exporting"]
)
def test_reading_a_run_needs_no_engine(name: str) -> None:
    for path in part(name):
        for imported in internal_imports(path):
            assert imported.split(".")[0] not in ("engine", "api", "cli")
        assert not top_level(path) & {"lightning_fabric", "rich"}


def test_nothing_imports_the_command_line() -> None:
    allowed = ("__main__", "released", "cli")  # released: another command line, which calls it
    for path in modules():
        if name_of(path).split(".")[0] not in allowed:
            assert not any(name.split(".")[0] == "cli" for name in internal_imports(path)), path


GENERAL = (
    "distiller",
    "terms",
    "engine",
    "schedules",
    "methods/recipe",
    "methods/contract",
    "teacher",
    "evaluation",
    "prediction",
    "exporting",
    "runs",
    "run_settings",
    "run_config",
    "commands",
    "inputs",
    "types",
)
"""Parts that serve every method, dataset and network alike."""
NETWORKS = ("deeplab", "resnet", "mobilenet", "segformer")
"""Parts of words that name one architecture."""
ALLOWED = {
    "backbone_parameters",  # of a segmenter, whatever it declares as its backbone
    "dist",
    "DistError",  # torch.distributed
    "torch.nn.attention",
}
"""Names in code that only look like those of a room."""


def names_in_code(path: Path) -> Iterator[str]:
    """Every name in code, and every string in quotes, but for docstrings and whole sentences."""
    tree = tree_of(path)
    texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in texts and text.count(" ") < 4:
                yield repr(text)
            case (
                ast.Attribute(attr=name)
                | ast.Name(id=name)
                | ast.arg(arg=name)
                | ast.keyword(arg=str(name))
                | ast.FunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.alias(name=name)
                | ast.ImportFrom(module=str(name))
            ):
                yield name


def words_of(text: str) -> str:
    """``PixelKDLoss``, ``pixel_kd_loss``, ``pixel-kd/loss`` -> ``_pixel_kd_loss_``."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text)
    return f"_{'_'.join(re.findall('[a-z0-9]+', apart.lower()))}_"


@cache
def names_of_rooms() -> set[str]:
    """Names of methods, losses, datasets and families, and words of one family of networks."""
    from aicsd.data import DATASETS
    from aicsd.models.sources import SOURCES

    families = {source.PREFIX for source in SOURCES if source.names()}
    parts = {"backbone", "classifier", "aspp", "decoder", "encoder"}
    names = {*list_methods(), *aicsd.losses.list_losses(), *DATASETS, *families, *parts}
    # the package is called like its first method
    return names - {"none", "folder", "aicsd"}


def names_of_one_room(path: Path) -> set[str]:
    """Names in code that belong to one method, loss, dataset or network."""
    rooms = names_of_rooms()
    found = set()
    for name in set(names_in_code(path)) - ALLOWED:
        words = words_of(name)
        is_network = any(network in words.replace("_", "") for network in NETWORKS)
        if name == "'aicsd'" or is_network or any(f"_{room}_" in words for room in rooms):
            found.add(name)
    return found


def test_general_parts_know_no_method_loss_dataset_or_network_by_name() -> None:
    for path in (path for name in GENERAL for path in part(name)):
        # the default method of a config, and the package as the title of a page
        allowed = {"'aicsd'"} if name_of(path) in ("run_config", "prediction.page") else set()
        assert names_of_one_room(path) <= allowed, path


@pytest.mark.parametrize(
    "planted",
    [
        "net.classifier",
        "x == 'pixel_kd'",
        "x == 'icsd_loss'",
        "from aicsd.losses.icsd import icsd_loss",
        "isinstance(x, ICSDLoss)",
        "isinstance(x, aicsd.losses.PixelKDLoss)",
        "f(backbone=1)",
        "def f(encoder): pass",
        "f'{x} camvid'",
        "x.startswith('torchvision:')",
        "x = {'student.backbone': 1}",
        "class DeepLabTeacher: pass",
        "from timm.models import resnet18",
        "match x:\n    case 'cwd': pass",
        "x == 'aicsd'",
        "x == 'dist'",
    ],
)
def test_the_law_sees_a_planted_name(planted: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(f'"""Of the backbone."""\n{planted}\n')
    assert names_of_one_room(tmp_path / "m.py")


def test_the_law_leaves_other_names_alone(tmp_path: Path) -> None:
    source = '"""Of icsd."""\nimport torch.distributed as dist\nfrom aicsd.runs import RunFolder\n'
    source += 'def f(x):\n    """``pixel_kd``."""\n    return x.backbone_parameters(), "kdx"\n'
    (tmp_path / "m.py").write_text(source)
    assert not names_of_one_room(tmp_path / "m.py")


@pytest.mark.parametrize(
    ("name", "lines"), [("engine/fit", 150), ("distiller", 120), ("terms", 120)]
)
def test_the_heart_stays_short(name: str, lines: int) -> None:
    assert len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= lines


def test_one_owner_of_a_run_folder_and_of_its_batches() -> None:
    files = {place.name for place in vars(RunFolder("run")).values()} - {"run"}
    for path in modules():
        name, text = name_of(path), path.read_text(encoding="utf-8")
        if name == "runs":
            continue
        words = (word.strip("'") for word in names_in_code(path) if " " not in word)
        assert not files & {word.rpartition("/")[2] for word in words}, name
        assert name in ("data.batches", "engine.run_batches") or "plan_batches" not in text, name


def test_rules_of_settings_name_settings() -> None:
    known = {key for key, _ in leaves(DistillConfig)}
    assert {*UNIMPORTANT, *PROCESSES, *AGAINST_DIVERGENCE} <= known


def test_files_are_short_and_tied_to_no_machine() -> None:
    for path in modules():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        assert ".cuda(" not in text, path
        assert not re.search("fmt: (skip|off)", text), path
        assert not re.search(r"/(home|root|Users|kaggle|content|work|mnt)/", text), path
        assert not re.search(r"[A-Z]:\\\\", text), path


def test_every_module_says_what_it_is_for() -> None:
    for path in modules():
        if path.name != "_version.py":
            assert ast.get_docstring(tree_of(path)), path


LOSS_FUNCTIONS = {f"{name}_loss" for name in aicsd.losses.list_losses()} | {
    name
    for name in aicsd.losses.__all__
    if name.islower() and name not in ("list_losses", "loss_class")
}


@pytest.mark.parametrize("name", sorted(LOSS_FUNCTIONS))
def test_public_losses_document_parameters_and_shapes(name: str) -> None:
    function = getattr(aicsd.losses, name)
    text = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^    {parameter}: ", text, re.MULTILINE), parameter
    assert "(B, " in text
    assert "Returns:\n" in text


@pytest.mark.parametrize("name", aicsd.losses.list_losses())
def test_loss_modules_document_their_shapes(name: str) -> None:
    module = aicsd.losses.loss_class(name)
    assert module.__doc__
    assert "(B, " in (inspect.getdoc(module.forward) or "")


@pytest.mark.parametrize("name", ["losses", "models"])
def test_examples_in_docstrings_run(name: str) -> None:
    attempted = 0
    for path in part(name):
        if ">>>" in path.read_text(encoding="utf-8"):
            result = doctest.testmod(importlib.import_module(f"aicsd.{name_of(path)}"))
            assert result.failed == 0
            attempted += result.attempted
    assert attempted > 0


def test_tests_are_short() -> None:
    files = Path(__file__).parent.rglob("*.py")
    long = [path.name for path in files if len(path.read_text("utf-8").splitlines()) > 400]
    assert not long


def test_tests_have_unique_names() -> None:
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names))
