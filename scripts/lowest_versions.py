"""Install the lowest versions that pyproject.toml declares, and run the tests with them.

    python scripts/lowest_versions.py VENV [--extras digits,hub] [TEST ...]

Every requirement ``name>=1.2`` of the project and of the given extras becomes ``name==1.2.*``, in a
new virtual environment of the oldest Python that is declared. What these need themselves is left to
pip. Without TEST, all tests run that need no other extra.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
TESTS = (
    "tests/losses",
    "tests/models",
    "tests/methods",
    "tests/data",
    "tests/evaluation",
    "tests/visualization",
    "tests/test_api.py",
    "tests/test_resume.py",
    "tests/test_resume_stopped.py",
    "tests/test_resume_processes.py",
    "tests/test_distiller.py",
    "tests/test_cli_help.py",
    "tests/test_cli_runs.py",
    "tests/test_cli_settings.py",
    "tests/test_python_api.py",
)
RUNNER = ("pytest>=8.3", "pytest-xdist>=3.6", "hypothesis>=6.112", "scipy>=1.14")
"""Packages that the tests need."""


def lowest(requirement: str) -> str:
    """``torch>=2.9`` -> ``torch==2.9.*``; one without a lower bound stays.

    >>> lowest("mkdocstrings[python]>=0.27")
    'mkdocstrings[python]==0.27.*'
    """
    found = re.fullmatch(r"([\w.\[\],-]+)>=([\w.]+)", requirement.replace(" ", ""))
    return f"{found[1]}=={found[2]}.*" if found else requirement


def requirements(project: dict[str, Any], extras: list[str]) -> list[str]:
    """The declared requirements of the project and of some extras, which may raise a bound."""
    declared = {name_of(each): each for each in project["dependencies"]}
    for extra in extras:
        if extra not in project["optional-dependencies"]:
            raise SystemExit(f"no extra {extra!r} in pyproject.toml")
        declared |= {name_of(each): each for each in project["optional-dependencies"][extra]}
    return list(declared.values())


def name_of(requirement: str) -> str:
    """``torch>=2.9`` -> ``torch``."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="test the lowest declared versions")
    parser.add_argument("venv", type=Path, help="folder of the new environment")
    parser.add_argument("tests", nargs="*", default=TESTS)
    parser.add_argument("--extras", default="digits,hub")
    options = parser.parse_intermixed_args()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = project["requires-python"].removeprefix(">=")
    if not sys.version.startswith(wanted):
        print(f"note: the oldest Python is {wanted}, and this is {sys.version.split()[0]}")
    extras = [extra for extra in options.extras.split(",") if extra]
    pins = [lowest(each) for each in requirements(project, extras)]
    print("\n".join(pins), flush=True)
    python = options.venv / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not python.exists():
        venv.create(options.venv, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, *pins, *map(lowest, RUNNER)], check=True)
    subprocess.run([*install, "--no-deps", "-e", str(REPOSITORY)], check=True)
    done = subprocess.run([str(python), "-m", "pytest", "-q", *options.tests], cwd=REPOSITORY)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
