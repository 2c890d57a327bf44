"""Files of other tools, and files that lie or are meant to do harm: a network, or one line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASS_NAMES, RunCli, write_folder
from tiny_network import CLASSES

from aicsd.errors import UserError
from aicsd.models import load_model
from aicsd.models.exported import load_exported
from aicsd.models.input_spec import InputSpec

onnx = pytest.importorskip("onnx", reason="needs aicsd[export]")
pytest.importorskip("onnxruntime", reason="needs aicsd[export]")
Sides = Sequence[int | str]
ABOUT = {"format": 1, "output": "logits", "classes": list(CLASS_NAMES),
         "palette": [[0, 0, 0], [9, 9, 9], [90, 0, 0]]}  # fmt: skip
WEIGHT = np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)


def write(
    path: Path,
    nodes: Sequence[object],
    image: tuple[str, Sides],
    result: tuple[str, Sides],
    about: object = None,
    more_inputs: Sequence[str] = (),
    weights: dict[str, np.ndarray] | None = None,
) -> Path:
    """An ONNX file from ``x`` to ``y``; the ports are (element type, sides)."""

    def port(name: str, kind: str, sides: Sides) -> object:
        return onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), sides)

    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [port("x", *image), *(port(name, "FLOAT", [1]) for name in more_inputs)],
        [port("y", *result)],
        [onnx.numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 10
    if about is not None:
        text = about if isinstance(about, str) else json.dumps(about)
        onnx.helper.set_model_props(model, {"aicsd": text})
    onnx.save(model, path)
    return path


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> object:
    return onnx.helper.make_node(kind, inputs.split(), outputs.split(), **attributes)


def convolution(path: Path, last: bool = False, about: object = None) -> Path:
    """Logits by a 1x1 convolution: of (B, 3, H, W), or of (B, H, W, 3) to (B, H, W, 3)."""
    sides: Sides = ["b", "h", "w", 3] if last else ["b", 3, "h", "w"]
    nodes = [node("Conv", "x weight")]
    if last:
        nodes = [
            node("Transpose", "x", "first", perm=[0, 3, 1, 2]),
            node("Conv", "first weight", "maps"),
            node("Transpose", "maps", perm=[0, 2, 3, 1]),
        ]
    return write(path, nodes, ("FLOAT", sides), ("FLOAT", sides), about, weights={"weight": WEIGHT})


@pytest.mark.parametrize("last", [False, True])
def test_a_network_of_another_tool(tmp_path: Path, last: bool) -> None:
    path = convolution(tmp_path / "a.onnx", last)
    spec = InputSpec((10.0, 20.0, 30.0), (2.0, 3.0, 4.0), scale=1.0)
    model = load_exported(path, CLASSES, spec)
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    found = model(torch.from_numpy(image).permute(2, 0, 1)[None]).logits[0].numpy()
    normal = (image - np.array([10, 20, 30])) / np.array([2, 3, 4])
    wanted = np.einsum("kc,hwc->khw", WEIGHT[:, :, 0, 0], normal)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)
    assert model.num_parameters() == 9
    assert (model.predict(image) == wanted.argmax(0)).all()


def test_the_lines_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sides: Sides = ["b", 3, "h", "w"]
    nodes = [node("Conv", "x weight")]
    write(
        Path("theirs.onnx"),
        nodes,
        ("FLOAT", sides),
        ("FLOAT", ["b", 2, "h", "w"]),
        weights={"weight": WEIGHT[:2]},
    )
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"## A network of another tool.*?```python\n(.*?)```", page, re.DOTALL)
    found: dict[str, Any] = {}
    exec(lines, found)
    logits = found["teacher"](torch.full((1, 3, 4, 5), 255, dtype=torch.uint8)).logits[0, :, 0, 0]
    np.testing.assert_allclose(logits, WEIGHT[:2, :, 0, 0].sum(axis=1), rtol=1e-4)


def test_a_network_of_one_size_with_labels(tmp_path: Path) -> None:
    nodes = [node("ArgMax", "x", axis=1, keepdims=0)]
    path = write(tmp_path / "a.onnx", nodes, ("FLOAT", [1, 3, 4, 6]), ("INT64", [1, 4, 6]))
    model = load_exported(path, CLASSES, InputSpec((0.0,) * 3, (1.0,) * 3))
    image = np.zeros((8, 12, 3), np.uint8)
    image[:4, :, 1], image[4:, :, 2] = 200, 200
    labels = model.predict(image)
    assert labels.shape == (8, 12)
    assert set(labels[0]) == {1}
    assert set(labels[-1]) == {2}


def test_windows_of_a_network_of_one_size(tmp_path: Path) -> None:
    """Cut from the image at its own scale."""
    path = write(
        tmp_path / "a.onnx",
        [node("Conv", "x weight")],
        ("FLOAT", [1, 3, 32, 32]),
        ("FLOAT", [1, 3, 32, 32]),
        weights={"weight": WEIGHT},
    )
    raw = InputSpec((0.0,) * 3, (1.0,) * 3)
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    wanted = np.einsum("kc,hwc->khw", WEIGHT[:, :, 0, 0], image / 255).argmax(0)
    cut = load_exported(path, CLASSES, raw._replace(window=32)).predict(image)
    assert (cut == wanted).mean() >= 0.999
    assert (load_exported(path, CLASSES, raw).predict(image) == wanted).mean() < 0.9


def refused(path: Path, words: str, foreign: bool = False, image: bool = False) -> None:
    def use() -> None:
        model = load_exported(path, CLASSES) if foreign else load_model(path)
        if image:
            model.predict(np.zeros((40, 50, 3), np.uint8))

    with pytest.raises(UserError, match=words) as error:
        use()
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 500 + len(str(path))


def test_a_file_without_description_needs_class_names(tmp_path: Path) -> None:
    refused(
        convolution(tmp_path / "a.onnx"), "has no description by aicsd: write a.onnx.yaml beside it"
    )


def test_a_description_beside_the_file(tmp_path: Path, run_cli: RunCli) -> None:
    path = convolution(tmp_path / "theirs.onnx")
    (tmp_path / "names.txt").write_text("\n".join(CLASS_NAMES))
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 3), np.uint8)
    for classes in ("[ground, disc, bar]", "names.txt"):
        (tmp_path / "theirs.onnx.yaml").write_text(
            f"classes: {classes}\nmean: [9, 8, 7]\nstd: [2, 3, 4]\nscale: 1\nbgr: true\n"
            "align_corners: true\n"
        )
        model = load_model(path)
        assert model.classes.names == CLASS_NAMES
        assert model.align_corners
        normal = ((image - np.array([9, 8, 7])) / np.array([2, 3, 4]))[..., ::-1]
        wanted = np.einsum("kc,hwc->khw", WEIGHT[:, :, 0, 0], normal)
        assert (model.predict(image) == wanted.argmax(0)).all()
    root = write_folder(tmp_path / "data")
    flags = ("--data.name", "folder", "--data.root", root, "--json", tmp_path / "result.json")
    code, _, error = run_cli("evaluate", path, *flags)
    assert code == 0, error
    assert set(json.loads((tmp_path / "result.json").read_text())["per_class_iou"]) == {
        *CLASS_NAMES
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must have the key classes"),
        ("mean: [1, 2, 3]", "must have the key classes"),
        ("classes: [a, b, a]", "names one twice"),
        ("classes: 3", "classes is a list of names"),
        ("classes: nowhere.txt", "nowhere.txt cannot be read"),
        ("classes: [a, b, c]\nmeen: [1, 2, 3]", "unknown key 'meen'; did you mean 'mean'"),
        ("classes: [a, b, c]\nmean: 3", "not iterable"),
        ("classes: [a, b, c]\nstd: [1, 0, 1]", "must be above 0"),
        ("classes: [a, b, c]\nbgr: 1", "neither true nor false"),
        ("classes: [a", "cannot be read as YAML"),
    ],
)
def test_descriptions_beside_that_are_wrong(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.onnx.yaml").write_text(text)
    refused(convolution(tmp_path / "a.onnx"), words)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ("{", "broken description: JSONDecodeError"),
        ("[" * 100_000, "broken description: RecursionError"),
        ("[1]", "broken description: TypeError it is a list"),
        ({**ABOUT, "format": 2}, "description of format 2; this version reads 1"),
        ({**ABOUT, "format": "x" * 10_000}, "description of format xxx"),
        ({**ABOUT, "classes": 3}, "broken description"),
        ({**ABOUT, "palette": [[0, 0]]}, "broken description"),
        ({**ABOUT, "output": "mask"}, "broken description: ValueError output 'mask'"),
        ({**ABOUT, "size": [4]}, "broken description"),
        ({**ABOUT, "multiple": None}, "broken description"),
        ({"format": 1}, "broken description: KeyError"),
        (ABOUT, "its input is float32 .*, unlike its description"),
    ],
)
def test_descriptions_that_lie(tmp_path: Path, about: object, words: str) -> None:
    refused(convolution(tmp_path / "a.onnx", about=about), words)


IMAGES: tuple[str, Sides] = ("UINT8", ["b", "h", "w", 3])
LOGITS: tuple[str, Sides] = ("FLOAT", ["b", 3, "h", "w"])


def test_ports_that_lie(tmp_path: Path) -> None:
    cast = [node("Cast", "x", to=onnx.TensorProto.FLOAT)]
    path = write(tmp_path / "two.onnx", cast, IMAGES, LOGITS, ABOUT, more_inputs=["other"])
    refused(path, r"it has 2 inputs \(x, other\); wanted one")
    path = write(tmp_path / "output.onnx", cast, IMAGES, LOGITS, {**ABOUT, "output": "labels"})
    refused(path, "its output is float32 .*, unlike its description")
    path = write(tmp_path / "shape.onnx", cast, IMAGES, LOGITS, ABOUT)
    refused(path, r"it gives \(1, 40, 50, 3\), not maps of 3 classes", image=True)
    squeeze = [node("ReduceMax", "x axes", keepdims=0)]
    path = write(
        tmp_path / "ids.onnx",
        squeeze,
        IMAGES,
        ("UINT8", ["b", "h", "w"]),
        {**ABOUT, "output": "labels"},
        weights={"axes": np.array([3])},
    )
    assert load_model(path).predict(np.full((4, 4, 3), 2, np.uint8)).max() == 2
    with pytest.raises(UserError, match="class ids beyond its 3 classes"):
        load_model(path).predict(np.full((4, 4, 3), 3, np.uint8))


def test_a_file_that_asks_for_terabytes(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "sides"),
        node("Mul", "sides million", "huge"),
        node("Expand", "one huge"),
    ]
    weights = {"million": np.array([1, 1, 10**6, 10**6]), "one": np.ones((1, 1, 1, 1), np.float32)}
    path = write(tmp_path / "a.onnx", nodes, IMAGES, LOGITS, ABOUT, weights=weights)
    refused(path, r"cannot be run on images \(1, 40, 50, 3\)", image=True)


@pytest.mark.parametrize(
    ("shape", "result", "words"),
    [
        ((["b", 4, "h", "w"]), ["b", 3, "h", "w"], "its input is float32 .*; wanted three chan"),
        ((["b", 3, "h"]), ["b", 3, "h"], r"its input is float32 \(\?, 3, \?\); wanted images"),
        ((["b", 3, "h", "w"]), ["b", "h", "w"], "its output is .*; wanted logits of 3 classes"),
    ],
)
def test_networks_that_do_not_segment(
    tmp_path: Path, shape: Sides, result: Sides, words: str
) -> None:
    kind = "Identity" if len(shape) == len(result) else "ReduceMax"
    attributes: dict[str, Any] = {} if kind == "Identity" else {"keepdims": 0}
    nodes = [node(kind, "x", **attributes)]
    path = write(tmp_path / "a.onnx", nodes, ("FLOAT", shape), ("FLOAT", result))
    refused(path, words, foreign=True)
