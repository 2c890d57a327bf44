"""No library that aicsd uses looks up a name or connects, where no command needs the network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

for library in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(library, reason="needs aicsd[export]")

COMPILER = shutil.which("gcc") or shutil.which("cc")
COMMANDS = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from aicsd.data import open_dataset
from aicsd.exporting import export_model
from conftest import write_folder
from tiny_models import save_tiny_model
from tiny_network import tiny_model
from tiny_runs import aicsd, distill_command

out = Path(sys.argv[2])
root, teacher = write_folder(out / "data"), save_tiny_model(out / "teacher.safetensors")
photo = root / "images" / "val" / "000.png"
images = open_dataset("folder", str(root), "val", {})
for name in ("int8.onnx", "int8.xml"):  # made from a file in float, which is run first
    export_model(tiny_model(), out / name, calibration=images)
    aicsd("predict", out / name, photo, "--out", out / f"masks of {name}")
few = ("--epochs", 1, "--report_images", 1)
aicsd(*distill_command(root, teacher, out / "run", "--teacher_runtime", "openvino", *few))
"""


@pytest.fixture(scope="module")
def network_log(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """An environment in which every look-up and connection is refused and written to a file."""
    if sys.platform != "linux" or COMPILER is None:
        pytest.skip("needs Linux and a C compiler, to see what libraries do below Python")
    folder = tmp_path_factory.mktemp("network")
    source = Path(__file__).parent / "export" / "network_shim.c"
    shim, log = folder / "shim.so", folder / "log"
    build = [COMPILER, "-shared", "-fPIC", "-O1", str(source), "-o", str(shim)]
    subprocess.run(build, check=True, timeout=60)
    known = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key}
    return {**known, "LD_PRELOAD": str(shim), "NETWORK_LOG": str(log), "HOME": str(folder)}, log


def run(code: str, environment: dict[str, str], *arguments: object) -> None:
    found = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_the_log_sees_what_a_process_tries(network_log: tuple[dict[str, str], Path]) -> None:
    environment, log = network_log
    code = """
import socket
for attempt in (lambda: socket.getaddrinfo("reports.invalid", 443),
                lambda: socket.create_connection(("127.0.0.1", 9))):
    try:
        attempt()
    except OSError:
        pass
socket.socket().connect_ex(("127.0.0.1", 9))
"""
    log.unlink(missing_ok=True)
    run(code, environment)
    assert {"getaddrinfo reports.invalid", "connect"} <= {
        line.strip() for line in log.read_text().splitlines()
    }
    log.unlink()


@pytest.mark.slow
def test_commands_report_nothing(network_log: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    environment, log = network_log
    log.unlink(missing_ok=True)
    run(COMMANDS, environment, Path(__file__).parent, tmp_path)
    assert not log.exists(), log.read_text()
    assert not (Path(environment["HOME"]) / "intel").exists()
