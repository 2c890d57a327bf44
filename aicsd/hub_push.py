"""Push a model to the Hugging Face hub, with a model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aicsd.errors import UserError
from aicsd.hub import PREFIX, hub_errors, not_logged_in, require_hub
from aicsd.runs import MODEL_FILE, FinishedRun, RunFolder
from aicsd.types import has_own_name

CARD = "README.md"
METRIC_NAMES = {
    "miou": ("mean_iou", "mIoU"),
    "pixel_accuracy": ("accuracy", "pixel accuracy"),
    "class_accuracy": ("mean_accuracy", "class accuracy"),
}
"""Key in ``metrics.json`` -> type on the hub, and words."""
PUBLIC_NAME = re.compile(r"[A-Za-z][\w-]+:(?![/\\~.])")
"""Beginning of a value that is no local path, though it may hold a slash: ``PREFIX:user/name``."""


class NetworkFacts(NamedTuple):
    """Facts on a network without a run, for its model card."""

    name: str
    """Its backbone or architecture."""
    classes: tuple[str, ...]
    parameters: int


def push(run: str | Path, name: str, private: bool = False) -> str:
    """Put a run on the hub: weights, config, metrics and a model card, in one commit.

    Local paths are removed from the config. There is no licence in the card: it is the user's
    to choose, and so a card that is there already stays as it is.

    Args:
        run: folder of a finished run.
        name: ``user/name``; made if it is not there.
        private: make a new model visible to its owner only.

    Returns:
        Address of the commit.

    Raises:
        UserError: the run has not finished, no login, no access or no network.
    """
    hub = _ready_to_push(name)
    folder, finished = RunFolder(run), _read(Path(run))
    files: dict[str, Any] = {
        MODEL_FILE: folder.model,
        folder.config.name: yaml.safe_dump(finished.config, sort_keys=False).encode(),
        folder.result.name: (json.dumps(finished.result, indent=1) + "\n").encode(),
    }
    return _commit(hub, name, files, model_card(finished, name), private)


def push_file(file: Path, name: str, facts: NetworkFacts, private: bool = False) -> str:
    """Put one model file on the hub, with a short model card, in one commit.

    Args:
        file: safetensors file that ``aicsd.models.save_model`` wrote.
        name: ``user/name``; made if it is not there.
        facts: content of the card.
        private: make a new model visible to its owner only.

    Returns:
        Address of the commit.

    Raises:
        UserError: no login, no access or no network.
    """
    hub = _ready_to_push(name)
    return _commit(hub, name, {MODEL_FILE: file}, network_card(facts, name), private)


def _ready_to_push(name: str) -> Any:
    """The module ``huggingface_hub``, for a user who is logged in.

    Raises:
        UserError: ``name`` is not a name of a model, or no login.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{name!r} is not a name of a model on the hub; give user/name")
    hub = require_hub()
    if hub.get_token() is None:
        raise not_logged_in()
    return hub


def _commit(hub: Any, name: str, files: dict[str, Any], card: str, private: bool) -> str:
    """Add files, and the card where there is none yet; the address of the commit."""
    with hub_errors(name):
        api = hub.HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)
        if not api.file_exists(name, CARD):
            files[CARD] = card.encode()
        commit = api.create_commit(
            name,
            [hub.CommitOperationAdd(file, content) for file, content in files.items()],
            commit_message="Add the model, its metrics and its card",
        )
    return str(commit.commit_url)


def _read(run: Path) -> FinishedRun:
    """Shared part of a run: its config without local paths, and its metrics."""
    folder = RunFolder(run)
    finished = folder.read()
    if not folder.model.is_file():
        raise UserError(f"{run} is not a finished run: no {folder.model.name} in it")
    return replace(finished, config=without_paths(finished.config))


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in which a path is its last part, and the root of the data is left out."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, str) and not PUBLIC_NAME.match(value):
            return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
        return value

    cleaned: dict[str, Any] = clean(dict(config))
    if isinstance(cleaned.get("data"), dict):
        cleaned["data"]["root"] = None
    return cleaned


def model_card(run: FinishedRun, name: str) -> str:
    """The model card: front matter that the hub reads, and text."""
    hub = require_hub()
    data = run.config.get("data", {})
    dataset = str(data.get("name", "unknown"))
    metrics = {key: run.result[key] for key in METRIC_NAMES if run.result.get(key) is not None}
    results = [
        hub.EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=data.get("val_split", "val"),
            metric_type=METRIC_NAMES[key][0],
            metric_name=METRIC_NAMES[key][1],
            metric_value=value,
        )
        for key, value in metrics.items()
    ]
    front = hub.ModelCardData(
        library_name="aicsd",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "knowledge-distillation", run.method],
        metrics=[METRIC_NAMES[key][0] for key in metrics],
        model_name=name.split("/")[1],
        eval_results=None if run.result.get("labels") else results or None,
    )
    return f"---\n{front.to_yaml()}\n---\n\n{_text(run, name, dataset)}"


def network_card(facts: NetworkFacts, name: str) -> str:
    """The model card of a network without a run."""
    front = require_hub().ModelCardData(
        library_name="aicsd",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation"],
        model_name=name.split("/")[1],
    )
    return f"""---
{front.to_yaml()}
---

# {name.split("/")[1]}

`{facts.name}` ({facts.parameters / 1e6:.2f} M parameters) for semantic segmentation into
{len(facts.classes)} classes: {", ".join(facts.classes)}.
{_USE.format(reference=f"{PREFIX}{name}")}
{_LICENCE}"""


_USE = """
## Use

```bash
pip install 'aicsd[hub]'
aicsd predict {reference} photo.jpg --out predictions
```

```python
import aicsd

class_ids = aicsd.load_model("{reference}").predict("photo.jpg")  # (H, W) uint8
```
"""
_LICENCE = """## Licence

None is named here: it is for the owner of this model to choose, in keeping with the terms of the
data, of the teacher and of the weights that training started from.
"""


def _text(run: FinishedRun, name: str, dataset: str) -> str:
    config, metrics = run.config, run.result
    keys = config.get("student") or config.get("model") or {}
    teacher, before = metrics.get("teacher"), run.resumed_from.get("epochs")
    trained = (
        "trained on labels alone"
        if run.is_alone
        else f"distilled by **{run.method}** from the teacher `{config.get('teacher')}`"
    )
    rows = "".join(
        f"| {words} % | {_percent(metrics.get(key))} |"
        + (f" {_percent(teacher.get(key))} |" if teacher else "")
        + "\n"
        for key, (_, words) in METRIC_NAMES.items()
    )
    head = "| | this model |" + (" teacher |" if teacher else "")
    rule = "| --- | --- |" + (" --- |" if teacher else "")
    classes = "".join(
        f"| {class_name} | {_percent(iou)} |\n"
        for class_name, iou in metrics["per_class_iou"].items()
    )
    terms = "".join(
        f"| {term} | {options.get('weight')} | {options.get('schedule')} |\n"
        for term, options in config.get("terms", {}).items()
    )
    terms = f"\n| term | weight | schedule |\n| --- | --- | --- |\n{terms}" if terms else ""
    return f"""# {name.split("/")[1]}

{_network(keys)} ({metrics["parameters"] / 1e6:.2f} M parameters) for
semantic segmentation into {len(metrics["per_class_iou"])} classes, {trained} with the package
`aicsd`, whose method is Adaptive Inter-Class Similarity Distillation
([arXiv 2308.04243](https://arxiv.org/abs/2308.04243)).
{_USE.format(reference=f"{PREFIX}{name}")}
## Metrics

On the split `{config.get("data", {}).get("val_split", "val")}` of `{dataset}`
({metrics.get("images")} images), {_measured(run)}.

{head}
{rule}
{rows}
| class | IoU % |
| --- | --- |
{classes}
## Training

{config.get("epochs")} epochs{f" (resumed from {before})" if before else ""} on the split
`{config.get("data", {}).get("train_split", "train")}` of `{dataset}`, seed {config.get("seed")}.
`config.yaml` has every setting, without the paths of the machine.
{terms}
{_LICENCE}"""


def _measured(run: FinishedRun) -> str:
    """Conditions of the evaluation, as the end of a sentence."""
    if run.result.get("labels"):
        return "which have no labels: the metrics are the agreement with the teacher"
    if run.config.get("protocol") == "released":
        side = run.config["data"]["augment"]["crop"]
        return f"resized to a short side of {side} pixels, as in the released AICSD code"
    return "at the native resolution of the labels"


def _network(keys: Mapping[str, Any]) -> str:
    """Family and backbone in the config of a run, as the subject of a sentence."""
    family, backbone = keys.get("family"), keys.get("backbone")
    if family is not None and (has_own_name(family) or backbone is None):
        return f"The network `{family}`"
    return (
        f"A network of the family `{family}` on {backbone}"
        if family
        else f"A network on {backbone}"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
