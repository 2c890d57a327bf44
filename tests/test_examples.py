"""The notebooks: sound files without outputs, whose cells run at tiny size."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import matplotlib as mpl
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples"
TINY: dict[str, dict[str, Any]] = {
    "01_distill_a_segformer": {
        "EPOCHS": 1,
        "SCENES": 8,
        "SIZE": 32,
        "WIDTHS": [8, 16, 16, 20],
        "REPORT_IMAGES": 0,
    },
    "02_losses_in_your_own_loop": {"STEPS": 3, "SCENES": 16, "SIZE": 32, "WIDTH": 16},
    "03_deploy": {
        "MODEL": None,
        "BACKBONE": "test_resnet",
        "CHANNELS": 8,
        "SIZE": (48, 64),
    },
}
"""Values of the cell ``parameters`` of every notebook."""


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))["cells"]
    return found


def test_every_notebook_is_run() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(TINY)


@pytest.mark.parametrize("name", TINY)
def test_a_notebook_is_a_sound_file_without_outputs(name: str) -> None:
    """Keys that version 4.5 of the format requires."""
    book = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[\w-]{1,64}", cell_id) for cell_id in ids)
    for cell in book["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
        assert set(cell) == keys
        assert cell["cell_type"] in ("code", "markdown")
        assert all(isinstance(line, str) for line in cell["source"])


@pytest.mark.parametrize("name", TINY)
def test_the_cells_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_notebook(name, tmp_path, monkeypatch)
    if "results" in names:
        assert set(names["results"]) == {"teacher", "none", "aicsd"}
        assert (tmp_path / names["RUNS"] / "small" / "model.safetensors").is_file()
    if "session" in names:
        assert names["class_ids"].shape == (48, 64)
        assert len(names["about"]["classes"]) == 3
    if "Distillation" in names:
        assert len(names["losses"]) == 3
        assert names["trained"].global_step == 3
        check_distillation(names)
        check_lightning(name, names)


def run_notebook(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the code cells leave, with the tiny parameters."""
    mpl.use("Agg")
    monkeypatch.chdir(place)
    for key in ("CUDA_VISIBLE_DEVICES", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(key, "")
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in cells(name):
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        exec(compile(source, cell["id"], "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assigned = {
                ast.unparse(n.targets[0])
                for n in ast.parse(source).body
                if isinstance(n, ast.Assign)
            }
            assert set(TINY[name]) <= assigned
            names |= TINY[name]
    return names


def check_distillation(names: dict[str, Any]) -> None:
    """Only the student is trained and saved, and the weights move from the teacher to labels."""
    task = names["task"]
    assert all(key.startswith("student.") for key in task.state_dict())
    batch = next(iter(names["loader"]))
    task.eval()
    logits = task.student(batch["pixel_values"])
    target = names["teacher"](batch["pixel_values"])
    kd = torch.nn.functional.kl_div(
        logits.log_softmax(1), target.log_softmax(1), log_target=True, reduction="none"
    )
    task.progress = 0.0
    assert task(**batch)["loss"].item() == pytest.approx(kd.sum(1).mean().item(), rel=1e-4)
    task.progress = 1.0
    loss = task(**batch)["loss"]
    full = torch.nn.functional.interpolate(logits, batch["labels"].shape[-2:], mode="bilinear")
    labels = torch.nn.functional.cross_entropy(full, batch["labels"], ignore_index=255)
    assert loss.item() >= labels.item()
    loss.backward()
    assert all(p.grad is None for p in names["teacher"].parameters())


def check_lightning(name: str, names: dict[str, Any]) -> None:
    """The class in the text, on a stand-in for Lightning, which the tests do not install."""
    (block,) = [
        code
        for cell in cells(name)
        if cell["cell_type"] == "markdown"
        for code in re.findall(r"```python\n(.*?)```", "".join(cell["source"]), re.DOTALL)
    ]
    definition = block.split("lightning.Trainer(")[0].replace("import lightning\n", "")

    logged: dict[str, float] = {}

    class LightningModule(torch.nn.Module):
        global_step, trainer = 1, SimpleNamespace(max_steps=4)

        def log(self, key: str, value: torch.Tensor) -> None:
            logged[key] = value.item()

    stand_in = ModuleType("lightning")
    vars(stand_in)["LightningModule"] = LightningModule
    found = {**names, "lightning": stand_in}
    exec(definition, found)
    module = found["LitDistillation"](names["task"])
    loss = module.training_step(next(iter(names["loader"])), 0)
    assert names["task"].progress == 0.25
    assert logged["loss"] == loss.item()
    optimizer = module.configure_optimizers()
    trained = sum(len(group["params"]) for group in optimizer.param_groups)
    assert trained == len(list(names["task"].student.parameters()))
