"""The scripts behind the numbers of docs/numerics.md and docs/weights.md."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch
from conftest import CLASS_NAMES, TINY_MODEL
from PIL import Image
from started import Started
from torch import nn

from aicsd.data.protocol import Classes
from aicsd.distiller import Distiller
from aicsd.methods import list_methods, load_recipe
from aicsd.models import ModelConfig, build_model
from aicsd.teacher import Teacher
from aicsd.types import Batch

REPOSITORY = Path(__file__).parents[1]
SCRIPTS = REPOSITORY / "scripts"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_term_scale_covers_every_term() -> None:
    from term_scale import all_terms

    from aicsd.benchmark.weights import matched_weights, term_scales

    classes = Classes(CLASS_NAMES, ((0, 0, 0), (255, 0, 0), (0, 0, 255)))
    torch.manual_seed(0)
    networks = [build_model(ModelConfig(**TINY_MODEL), classes) for _ in range(2)]
    image = torch.randint(256, (2, 3, 64, 64)).to(torch.uint8)
    mask = torch.randint(3, (2, 64, 64))
    batch = Batch(image, mask, torch.ones(2, 64, 64, dtype=torch.bool))
    teacher = Teacher(networks[1], classes)
    scales = term_scales(networks[0], teacher, [batch, batch], all_terms())
    terms = {name: term for m in list_methods() for name, term in load_recipe(m).terms.items()}
    assert {label.split()[0] for label in scales} == set(terms)
    assert scales["cross_entropy"][2] == pytest.approx(1.0)
    for value, norm, ratio in scales.values():
        assert value > 0
        assert norm > 0
        assert ratio > 0
    assert scales["masked_generative native"].value < 0.9  # a generator that knows nothing: 1

    for name in ("icsd", "attention", "pairwise", "correlation"):
        recipe = load_recipe("none", {name: {"at": terms[name].at}})
        torch.manual_seed(0)
        expected = Distiller(networks[0], recipe, teacher).train()(batch, 0.5)
        assert scales[f"{name} native"][0] == pytest.approx(expected[name].item(), rel=1e-4)
    two = load_recipe("aicsd")
    for name, weight in matched_weights(networks[0], teacher, [batch], two).items():
        ratio = scales[f"{name} native"].ratio
        assert 2 * weight * ratio == pytest.approx(1.0, rel=0.06)  # two terms share; two digits


def test_the_documented_numerics_table_is_what_the_script_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import numerics_example as script

    script.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(printed) >= 2 + 2 * 6
    text = (REPOSITORY / "docs" / "numerics.md").read_text(encoding="utf-8")
    assert printed[0] in text
    for line in printed[2:]:
        name = re.escape(" | ".join(line.split(" | ")[:2]))
        (documented,) = [d for d in text.splitlines() if re.match(name, d)]
        for shown, now in zip(documented.split(" | ")[2:], line.split(" | ")[2:], strict=True):
            if re.match(r"[-\d.]", now):
                wanted = float(shown.strip(" |"))
                assert float(now.strip(" |")) == pytest.approx(wanted, rel=0.03, abs=0.003)
            else:
                assert shown == now


def test_operations_of_a_forward_pass_are_those_of_its_convolutions() -> None:
    from aicsd.benchmark.counts import kept_bytes_and_flops

    config = ModelConfig("test_resnet", aspp_channels=8, decoder_channels=8, low_level_channels=8)
    classes = Classes(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    with torch.device("meta"):
        model = build_model(config, classes).eval()
    counted = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        # multiplications for one value of the output
        kernel = module.get_parameter("weight")[0].numel()
        counted.append(2 * kernel * output.numel())

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(2, 3, 65, 65, dtype=torch.uint8, device="meta"))
    kept, operations, weights = kept_bytes_and_flops(config, classes, 2, 65, trains=False)
    assert operations == sum(counted)
    assert kept == 0
    assert weights == 4 * model.num_parameters()
    kept, trained, _ = kept_bytes_and_flops(config, classes, 2, 65, trains=True)
    # backward: once for the inputs (not for the image's), once for the weights
    assert 2.5 * operations < trained < 3 * operations
    assert kept > 2 * 3 * 65 * 65 * 4


def test_the_table_of_costs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import training_cost

    config = REPOSITORY / "aicsd" / "configs" / "voc" / "aicsd.yaml"
    monkeypatch.setattr(
        sys, "argv", ["training_cost.py", "--config", str(config), "--images", "1464"]
    )
    training_cost.main()
    printed = capsys.readouterr().out
    page = (REPOSITORY / "docs" / "reproduce.md").read_text(encoding="utf-8")
    for name, row in (("resnet18.tv_in1k alone", "ResNet-18 alone"),
                      ("with teacher resnet101", "ResNet-18 distilled")):  # fmt: skip
        found = next(line for line in printed.splitlines() if line.startswith(f"| {name} |"))
        figures = found.split("|")[2:5]
        assert f"| {row} |{'|'.join(figures)}|" in page


@pytest.mark.slow
def test_killed_trainings_leave_what_an_undisturbed_one_leaves(tmp_path: Path) -> None:
    """The short form of the soak; the long one is in docs/reliability.md."""
    words = ["--kills", "3", "--seed", "80274"]  # in cache, training and validation; short waits
    with Started(words, tmp_path / "log", script=SCRIPTS / "soak.py") as soak:
        assert soak.wait(300) == 0, soak.output + soak.error[-2000:]
        assert int(soak.output.partition(" kills of")[0].split()[-1]) >= 3
        assert "; 0 differences" in soak.output


def test_readers_refuse_damaged_files_in_one_line(tmp_path: Path) -> None:
    """The short form of the fuzzing; one input of a reader that fails is found and kept."""
    import fuzz

    with Started(["--inputs", "1500"], tmp_path / "log", script=SCRIPTS / "fuzz.py") as whole:
        assert whole.wait(300) == 0, whole.output + whole.error[-2000:]
        assert ", 0 findings (seed 0)" in whole.output

    def fail(path: Path) -> None:
        data = path.read_bytes()
        if data[:1] == b"\x00":
            os.kill(os.getpid(), signal.SIGKILL)
        if len(data) < 20:
            raise KeyError("short")

    reader = fuzz.Reader("x", [b"\x01" * 30], fail)
    found = fuzz.fuzz_reader("x", reader, tmp_path, 0, range(200))
    assert {f.what.partition(" ")[0] for f in found} == {"the", "KeyError"}
    for finding in found:
        data = fuzz.damaged("x", reader, 0, finding.number)
        assert data[:1] == b"\x00" or len(data) < 20


def test_the_page_of_keys_is_what_the_script_writes() -> None:
    import term_keys as script

    page = script.page()
    assert script.PAGE.read_text(encoding="utf-8") == page, "run python scripts/term_keys.py"
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) > 50
    assert all(kind and default and meaning for _, kind, default, meaning in rows)


def test_photo_picture_shows_the_networks_of_the_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import photo_picture

    zoo = sorted((REPOSITORY / "zoo").glob("facade_*.safetensors"))
    out = tmp_path / "photo.jpg"
    models = [f"{path.stem}={path}" for path in zoo]
    monkeypatch.setattr(sys, "argv", ["photo_picture.py", str(out), *models])
    photo_picture.main()
    with Image.open(out) as picture:
        assert picture.width > 1000
