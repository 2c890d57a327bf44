"""The programs of docs/deploy.md run where aicsd is not, and give the labels of PyTorch.

Those for phones are in test_formats.py.
"""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from deploy_programs import REPOSITORY, bring, bring_photo, program, run, wanted
from PIL import Image
from tiny_network import CLASSES

from aicsd.formats import onnx, openvino

COMPILER = shutil.which("g++") or shutil.which("clang++")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
WEB_RUNTIME = Path(
    os.environ.get("ONNXRUNTIME_WEB", REPOSITORY / "node_modules" / "onnxruntime-web" / "dist")
)
HEADERS = [
    Path(folder)
    for folder in (
        os.environ.get("ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"),
        "/usr/include/onnxruntime/core/session",
        "/usr/local/include/onnxruntime",
    )
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    bring_photo(tmp_path)
    return tmp_path


def test_python(place: Path) -> None:
    bring(onnx.FORMAT, place)
    assert not re.search(r"import (aicsd|torch)", program("python"))
    assert len([line for line in program("python").splitlines() if line]) <= 10
    missing = "import sys\nfor name in ('aicsd', 'torch'):\n    sys.modules[name] = None\n"
    run([sys.executable, "-I", "-c", missing + program("python")], place)
    shown = np.asarray(Image.open(place / "classes.png"))
    assert (shown == np.array(CLASSES.palette)[wanted(place)]).all(axis=-1).mean() >= 0.999


def mask_of(place: Path) -> np.ndarray:
    return np.asarray(Image.open(place / "classes.pgm"))


def test_cpp_with_onnx_runtime(place: Path) -> None:
    folders = [folder for folder in HEADERS if (folder / "onnxruntime_cxx_api.h").is_file()]
    if COMPILER is None or not folders:
        pytest.skip("needs a C++ compiler, and ONNX Runtime's headers in $ONNXRUNTIME_INCLUDE")
    runtime = pytest.importorskip("onnxruntime", reason="needs aicsd[export]")
    libraries = list(Path(runtime.__file__).parent.glob("capi/libonnxruntime.so.*"))
    if not libraries:
        pytest.skip("this package of onnxruntime has no shared library")
    bring(onnx.FORMAT, place)
    (place / "onnxruntime.cpp").write_text(program("onnxruntime.cpp"))
    run([COMPILER, "-std=c++17", "onnxruntime.cpp", f"-I{folders[0]}", libraries[0],
         f"-Wl,-rpath,{libraries[0].parent}", "-o", "segment"], place)  # fmt: skip
    # the library's own name has its major version alone
    (place / "libonnxruntime.so.1").symlink_to(libraries[0])
    run([place / "segment"], place, LD_LIBRARY_PATH=str(place))
    assert (mask_of(place) == wanted(place)).mean() >= 0.999


def test_cpp_with_openvino(place: Path) -> None:
    runtime = pytest.importorskip("openvino", reason="needs aicsd[export]")
    package = Path(runtime.__file__).parent
    libraries = list((package / "libs").glob("libopenvino.so.*"))
    if COMPILER is None or not libraries or not (package / "include").is_dir():
        pytest.skip("needs a C++ compiler and OpenVINO's headers and library")
    bring(openvino.FORMAT, place)
    (place / "openvino.cpp").write_text(program("openvino.cpp"))
    run([COMPILER, "-std=c++17", "openvino.cpp", f"-I{package / 'include'}", libraries[0],
         f"-Wl,-rpath,{package / 'libs'}", "-o", "segment"], place)  # fmt: skip
    run([place / "segment"], place)
    assert (mask_of(place) == wanted(place)).mean() >= 0.99  # bfloat16, where the processor has it


@pytest.fixture
def address(place: Path) -> Iterator[str]:
    """Serves ``place`` to this machine."""
    handler = functools.partial(_Quiet, directory=str(place))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_browser(place: Path, address: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if BROWSER is None:
        pytest.skip("needs Chromium")
    if not (WEB_RUNTIME / "ort.wasm.min.js").is_file():
        pytest.skip("needs onnxruntime-web in node_modules, or its folder dist in $ONNXRUNTIME_WEB")
    bring(onnx.FORMAT, place)
    for name in ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(WEB_RUNTIME / name, place)
    (place / "page.html").write_text(program("page.html"))
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(f"{address}/page.html")
        labels = np.array(page.evaluate("async () => Array.from(await done)"), np.uint8)
        shown = page.evaluate(
            "Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data)"
        )
        browser.close()
    assert all(url.startswith((address, "blob:")) for url in requests), requests
    ids = wanted(place)
    assert (labels.reshape(ids.shape) == ids).mean() >= 0.999
    first_row = np.array(shown).reshape(-1, 4)[:, :3]
    assert (first_row == np.array(CLASSES.palette)[labels.reshape(ids.shape)[0]]).all()
