"""The scripts behind the numbers of docs/methods.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import CLASS_NAMES, TINY_MODEL

from aicsd.data.base import Classes
from aicsd.distiller import Distiller, Teacher
from aicsd.methods import TERMS, load_recipe
from aicsd.models import ModelConfig, build_model
from aicsd.types import Batch

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))


def test_term_scale_covers_every_term() -> None:
    import term_scale as script

    classes = Classes(CLASS_NAMES, ((0, 0, 0), (255, 0, 0), (0, 0, 255)))
    torch.manual_seed(0)
    networks = [build_model(ModelConfig(**TINY_MODEL), classes) for _ in range(2)]
    image = torch.randint(256, (2, 3, 64, 64)).to(torch.uint8)
    mask = torch.randint(3, (2, 64, 64))
    batch = Batch(image, mask, torch.ones(2, 64, 64, dtype=torch.bool))
    teacher = Teacher(networks[1], classes)
    scales = script.term_scales(networks[0], teacher, [batch, batch])
    assert {label.split()[0] for label in scales} == set(TERMS)
    assert scales["cross_entropy"][2] == pytest.approx(1.0)
    for value, norm, ratio in scales.values():
        assert value > 0
        assert norm > 0
        assert ratio > 0

    recipe = load_recipe("none", {name: {} for name in TERMS})
    torch.manual_seed(0)
    expected = Distiller(networks[0], recipe, teacher).train()(batch, 0.5)
    for name in ("icsd", "attention", "pairwise", "correlation"):
        assert scales[f"{name} native"][0] == pytest.approx(expected[name].item(), rel=1e-4)


def test_the_documented_numerics_table_is_what_the_script_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import numerics_example as script

    script.main()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(printed) == 2 + 2 * len(TERMS)
    text = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
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
