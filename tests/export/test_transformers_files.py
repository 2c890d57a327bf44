"""Networks of transformers as files: labels as those of the network, or one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_transformers import SIDE, tiny_network

from aicsd.errors import UserError
from aicsd.exporting import export_model
from aicsd.models import Segmenter, without_names
from aicsd.models.transformers_net import KINDS


def network(kind: str) -> Segmenter:
    return without_names(tiny_network(kind)).eval()


# tracing stands for ONNX and OpenVINO, which take minutes; the others are parts of these two
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["oneformer", "eomt"])
def test_a_mask_classifier_gives_the_same_labels(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network(kind)
    size = model.input.size or (SIDE, 3 * SIDE // 2)
    before = sorted(model.state_dict())
    # loading takes seconds: the file is loaded once, by the check of the export
    original, loaded = torch.export.load, []

    def load(path: Path) -> torch.export.ExportedProgram:
        loaded.append(original(path))
        return loaded[-1]

    monkeypatch.setattr(torch.export, "load", load)
    export_model(model, tmp_path / "m.pt2", size=size)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    file = loaded[0].module()
    found = file(torch.from_numpy(image)[None]).log_softmax(dim=1)
    wanted = model.image_output(image).logits
    assert sorted(model.state_dict()) == before
    # centred, so that random weights give every class somewhere
    middle = wanted.mean(dim=(2, 3), keepdim=True)
    labels = (wanted - middle).argmax(dim=1)
    assert ((found - middle).argmax(dim=1) == labels).float().mean() >= 0.999
    assert len(labels.unique()) > 1


@pytest.mark.parametrize("kind", [kind for kind, each in KINDS.items() if each.exports_one_size])
def test_a_size_is_asked_for_before_the_work(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{kind} is exported for images of one size.*--size"):
        export_model(network(kind), tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
