"""The pages below docs/: every command is one that the command line takes; the guide is run."""

from __future__ import annotations

import re
import shlex
from itertools import groupby
from pathlib import Path

import pytest

from aicsd.cli import find_command
from aicsd.cli.parser import parse
from aicsd.methods import load_recipe

REPOSITORY = Path(__file__).parent.parent
OTHER_PROGRAMS = {
    "pip",
    "make",
    "mkdir",
    "cp",
    "tensorboard",
    "cat",
    "display",
    "ffmpeg",
    "g++",
    "hf",
}
PAGES = sorted((REPOSITORY / "docs").rglob("*.md"))


def shell_commands(page: Path) -> list[list[str]]:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in joined.splitlines() if line.strip())
    # each part of a pipeline is a command
    return [
        list(part) for line in lines for is_pipe, part in groupby(line, "|".__eq__) if not is_pipe
    ]


COMMANDS = [
    pytest.param(command, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, command in enumerate(shell_commands(page))
    if command
]


def after_aicsd(command: list[str]) -> list[str] | None:
    """Arguments of ``aicsd``: called by its name, or as a module by a launcher."""
    if command[0] == "aicsd":
        return command[1:]
    if command[0] == "torchrun":
        assert command[command.index("--") - 1 :][:3] == ["-m", "--", "aicsd"], command
        return command[command.index("--") + 2 :]
    return None


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_pages_exists(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    arguments = after_aicsd(command)
    if arguments is not None:
        if ">" in arguments:
            arguments = arguments[: arguments.index(">")]
        arguments = [word for word in arguments if word != "..."]
        # aicsd init writes it, with the keys of the packaged config
        arguments = ["folder/aicsd" if word == "my_data.yaml" else word for word in arguments]
        _, found, rest = find_command(arguments)
        parse(found, rest)
        return
    if command[0] == "python" and command[1] == "-m":
        module = command[2].replace(".", "/")
        assert (REPOSITORY / f"{module}.py").is_file(), command
    elif command[0] == "python":
        source = (REPOSITORY / command[1]).read_text(encoding="utf-8")
        if command[1].startswith("scripts/"):
            for flag in (word for word in command[2:] if word.startswith("--")):
                assert f'"{flag}"' in source, flag
    else:
        assert command[0] in OTHER_PROGRAMS, command


def test_the_recipe_of_the_page_loads(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    terms = load_recipe(str(tmp_path / "mine.yaml")).terms
    assert {name: (term.contract.name, term.weight) for name, term in terms.items()} == {
        "cross_entropy": ("cross_entropy", 1.0),
        "pixel_kd": ("pixel_kd", 2.0),
        "similarity": ("pairwise", 0.1),
    }


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("sliding window", "evaluation"),
        ("test-time augmentation", "evaluation"),
        ("distributed training", "distributed"),
        ("fine-tune", "training"),
        ("class imbalance", "training"),
        ("data augmentation", "training"),
        ("learning rate", "training"),
        ("pseudo-label", "data"),
        ("quantization", "export"),
        ("ONNX", "export"),
        ("mobile", "deploy"),
        ("webcam", "predict"),
        ("video", "predict"),
        ("inference", "predict"),
        ("throughput", "benchmark"),
        ("overfitting", "own-data"),
        ("resume", "runs"),
        ("TensorBoard", "visualize"),
    ],
)
def test_the_words_that_users_search_for_are_on_the_page(words: str, page: str) -> None:
    """The search of the site indexes the text of the pages, without code blocks."""
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    prose = " ".join(re.sub(r"```.*?```", "", text, flags=re.DOTALL).split())
    assert words.lower() in prose.lower()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            place = (page.parent / target).resolve()
            assert place.exists(), target
            # the site has these pages alone, and its build refuses any other target
            assert place.is_relative_to(REPOSITORY / "docs"), target
