"""Exported files, run by the libraries they are for, against plain PyTorch; and their errors."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASS_NAMES, RunCli, write_folder
from PIL import Image
from tiny_runs import FIT_FLAGS, NO_REPORT, aicsd, data_flags
from torch import Tensor

from aicsd.data import Classes
from aicsd.models import ModelConfig, Segmenter, build_model, load_model, save_model

for library in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"):
    pytest.importorskip(library, reason="needs aicsd[export]")

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
SIZES = ((1, 33, 95), (3, 71, 54), (1, 128, 128))
LEARN = ("--optimizer.name", "adamw", "--optimizer.lr", "0.01", "--optimizer.head_lr_factor", "1")
# the smallest network of timm: each export takes seconds, and more with the number of layers
NETWORK: dict[str, Any] = {
    "backbone": "test_resnet",
    "output_stride": 32,
    "aspp_channels": 8,
    "decoder_channels": 8,
    "low_level_channels": 4,
    "dropout": 0,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def root(place: Path) -> Path:
    return write_folder(place / "data")


@pytest.fixture(scope="module")
def run(place: Path, root: Path) -> Path:
    """A trained student: for INT8, weights of a real range."""
    flags = [part for key, value in NETWORK.items() for part in (f"--model.{key}", str(value))]
    aicsd("train", *data_flags(root), "--data.batch_size", "4", *FIT_FLAGS, *flags,
          "--run", place / "run", "--epochs", "20", "--val_every", "0", *LEARN,
          *NO_REPORT)  # fmt: skip
    return place / "run"


@pytest.fixture(scope="module")
def onnx_file(place: Path, run: Path) -> Path:
    aicsd("export", run, "-o", place / "model.onnx", "--format", "onnx")
    return place / "model.onnx"


@pytest.fixture(scope="module")
def openvino_file(place: Path, run: Path) -> Path:
    aicsd("export", run, "-o", place / "model.xml", "--output", "native")
    return place / "model.xml"


@pytest.fixture(scope="module")
def int8_labels(place: Path, run: Path, root: Path) -> tuple[Path, str]:
    """INT8, class ids as output, for images of one size; and what the command printed."""
    out = place / "labels.onnx"
    printed = aicsd("export", run, "-o", out, "--output", "labels", "--int8", "true",
                    "--size", "64x48", *data_flags(root), "--calibration_images", "6")  # fmt: skip
    return out, printed


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)


def by_hand(model: Segmenter, images: np.ndarray, resized: bool = True) -> Tensor:
    """(B, C, H, W) logits with a normalisation of its own."""
    mean, std = np.array(model.input.mean), np.array(model.input.std)
    normal = torch.from_numpy((images / 255 - mean) / std).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        logits: Tensor = model.net(normal).logits
    if not resized:
        return logits
    return F.interpolate(logits, size=images.shape[1:3], mode="bilinear", align_corners=True)


def assert_same_logits(found: np.ndarray, wanted: Tensor) -> None:
    assert found.dtype == np.float32
    assert found.shape == tuple(wanted.shape)
    assert np.abs(found - wanted.numpy()).max() <= 1e-3 * np.ptp(wanted.numpy())
    assert (found.argmax(1) == wanted.numpy().argmax(1)).mean() >= 0.999


def assert_describes(about: dict[str, Any], output: str) -> None:
    assert about["classes"] == list(CLASS_NAMES)
    assert len(about["palette"]) == len(CLASS_NAMES)
    assert about["output"] == output
    assert {"input", "preprocessing", "result", "mean", "std", "int8"} <= about.keys()


@pytest.mark.parametrize("shape", SIZES)
def test_onnx(run: Path, onnx_file: Path, shape: tuple[int, int, int]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": noise(shape)})
    assert_same_logits(logits, by_hand(load_model(run), noise(shape)))
    assert_describes(json.loads(session.get_modelmeta().custom_metadata_map["aicsd"]), "logits")


@pytest.mark.parametrize("shape", SIZES)
def test_openvino_at_native_stride(
    run: Path, openvino_file: Path, shape: tuple[int, int, int]
) -> None:
    import openvino

    model = openvino.Core().read_model(openvino_file)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    logits = compiled({"images": noise(shape)})[0]
    assert logits.shape[2:] == (-(-shape[1] // 4), -(-shape[2] // 4))
    assert_same_logits(logits, by_hand(load_model(run), noise(shape), resized=False))
    assert_describes(json.loads(model.get_rt_info(["aicsd"]).astype(str)), "native")


def test_int8_labels(run: Path, root: Path, int8_labels: tuple[Path, str]) -> None:
    import onnx
    import onnxruntime

    path, printed = int8_labels
    assert "calibrated on 6 images of train" in printed
    told = re.search(r"mIoU (\S+) -> (\S+) \((\S+) points\) on 4 images", printed)
    assert told is not None, printed
    before, after, change = map(float, told.groups())
    assert before > 30  # else INT8 has nothing to lose
    assert change == pytest.approx(after - before, abs=0.011)
    assert abs(change) < 5
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert nodes.count("QuantizeLinear") > 5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = np.asarray(Image.open(root / "images" / "val" / "000.png"))[None]
    (labels,) = session.run(None, {"images": image})
    assert labels.dtype == np.uint8
    assert (labels == by_hand(load_model(run), image).argmax(1).numpy()).mean() > 0.95


@pytest.mark.parametrize("flags", [(), ("--scales", "0.75,1.5", "--flip", "true")])
def test_evaluate(
    run: Path,
    root: Path,
    onnx_file: Path,
    openvino_file: Path,
    tmp_path: Path,
    run_cli: RunCli,
    flags: tuple[str, ...],
) -> None:
    found = []
    for number, model in enumerate((run, onnx_file, openvino_file)):
        out = tmp_path / f"{number}.json"
        code, _, error = run_cli("evaluate", model, *data_flags(root), "--json", out, *flags)
        assert code == 0, error
        found.append(json.loads(out.read_text())["miou"])
    # rounding resized images to uint8 moves a few pixels
    assert found[1:] == pytest.approx([found[0]] * 2, abs=0.02 if flags else 1e-4)


def test_predict(
    run: Path,
    root: Path,
    onnx_file: Path,
    int8_labels: tuple[Path, str],
    tmp_path: Path,
    run_cli: RunCli,
) -> None:
    ids = []
    for name, model in (("run", run), ("onnx", onnx_file), ("labels", int8_labels[0])):
        code, _, error = run_cli("predict", model, root / "images/val", "--out", tmp_path / name)
        assert code == 0, error
        ids.append(np.asarray(Image.open(tmp_path / name / "000.png")))
    assert (ids[0] == ids[1]).mean() >= 0.999
    assert (ids[0] == ids[2]).mean() > 0.95


def test_no_path_of_this_machine_in_the_file(onnx_file: Path, openvino_file: Path) -> None:
    for path in (onnx_file, openvino_file):
        assert b".py" not in path.read_bytes()


def lines_without_aicsd() -> str:
    text = PAGE.read_text(encoding="utf-8")
    pattern = r"<!-- without aicsd -->\n```python\n(.*?)```\n<!-- end of without aicsd -->"
    (block,) = re.findall(pattern, text, re.DOTALL)
    return str(block)


def test_ten_lines() -> None:
    assert len([line for line in lines_without_aicsd().splitlines() if line]) <= 10
    assert not re.search(r"import (aicsd|torch)", lines_without_aicsd())


def test_nothing_of_aicsd_or_pytorch_is_needed(
    run: Path, root: Path, onnx_file: Path, tmp_path: Path
) -> None:
    """The lines of docs/export.md run with ONNX Runtime, NumPy and Pillow alone."""
    shutil.copy(onnx_file, tmp_path / "model.onnx")
    Image.open(root / "images/val/000.png").resize((131, 97)).save(tmp_path / "photo.jpg")
    missing = "import sys\nfor name in ('aicsd', 'torch'):\n    sys.modules[name] = None\n"
    found = subprocess.run(
        [sys.executable, "-I", "-c", missing + lines_without_aicsd()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stderr

    # decoded by Pillow there and here: another decoder gives other pixels
    pixels = np.asarray(Image.open(tmp_path / "photo.jpg").convert("RGB"))
    model = load_model(run)
    wanted = model.predict(pixels)
    shown = np.asarray(Image.open(tmp_path / "classes.png"))
    equal = (shown == np.array(model.classes.palette, np.uint8)[wanted]).all(axis=-1)
    assert equal.mean() >= 0.999
    assert len(np.unique(wanted)) > 1
    assert found.stdout.strip() == str([CLASS_NAMES[i] for i in np.unique(wanted)])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it who will be refused: a model, two datasets, files in the way."""
    place = tmp_path_factory.mktemp("workplace")
    for name in ("data", "other"):
        write_folder(place / name)
    (place / "other" / "classes.txt").write_text("ground\ndisc\npole\n")
    classes = Classes(CLASS_NAMES, ((0, 0, 0), (200, 0, 0), (0, 0, 200)))
    save_model(build_model(ModelConfig(**NETWORK), classes).eval(), place / "model.safetensors")
    for name in ("there.onnx", "there.bin"):
        (place / name).write_text("mine")
    return place


def test_export_of_an_export(onnx_file: Path, tmp_path: Path, run_cli: RunCli) -> None:
    assert_refused(run_cli("export", onnx_file, "-o", tmp_path / "a.onnx"), "exported already")


def assert_refused(result: tuple[int, str, str], words: str) -> None:
    code, output, error = result
    assert (code, output) == (2, "")
    assert error.startswith("aicsd: error: ")
    assert error.count("\n") == 1
    assert re.search(words, error), error


@pytest.mark.parametrize(
    ("out", "flags", "words"),
    [
        ("there.onnx", "", "there.onnx exists; choose another"),
        ("there.xml", "", "there.bin exists"),
        ("a.pb", "", r"a.pb must end in .onnx, .xml, .pt2, "),
        ("a", "", "must end in"),
        ("a.onnx", "--format openvino", "must end in .xml for openvino"),
        ("a.onnx", "--format onx", "unknown format 'onx'; did you mean 'onnx'"),
        ("a.onnx", "--output mask", "'mask'"),
        ("a.pt2", "--int8 true --data.name digits", "onnx, openvino, .* and executorch, not"),
        ("a.pte", "", "ExecuTorch files take images of one size: give --size WIDTHxHEIGHT"),
        ("a.onnx", "--size 40", "size is '40'"),
        ("a.onnx", "--size 32x32", "size is 32x32; the network takes sides of 33 pixels or more"),
        ("a.onnx", "--int8 true", "give --data.name and --data.root"),
        ("a.onnx", "--int8 true --data.name folder", "data.root"),
        (
            "a.onnx",
            "--int8 true --data.name folder --data.root data --calibration_images 0",
            "calibration_images is 0",
        ),
        (
            "a.onnx",
            "--int8 true --data.name folder --data.root data --calibration_split tain",
            "tain",
        ),
        ("a.onnx", "--int8 true --data.name folder --data.root other", "classes.*'bar'.*'pole'"),
    ],
)
def test_refused(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_cli: RunCli,
    out: str,
    flags: str,
    words: str,
) -> None:
    monkeypatch.chdir(workplace)
    before = sorted(workplace.rglob("*"))
    assert_refused(run_cli("export", "model.safetensors", "-o", out, *flags.split()), words)
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime", "openvino", "nncf"])
def test_library_not_installed(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: RunCli, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    out = tmp_path / ("a.xml" if library in ("openvino", "nncf") else "a.onnx")
    flags = ("--int8", "true", "--data.name", "digits") if library == "nncf" else ()
    result = run_cli("export", workplace / "model.safetensors", "-o", out, *flags)
    assert_refused(result, rf"need {library}: pip install 'aicsd\[export\]'")
