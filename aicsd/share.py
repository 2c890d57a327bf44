"""A finished run as a model on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aicsd.errors import UserError
from aicsd.files import CONFIG_FILE
from aicsd.models import MODEL_FILE, Segmenter, load_model
from aicsd.models.hub import PREFIX, hub_errors, not_logged_in, require_hub

METRICS_JSON = "metrics.json"
CARD = "README.md"
METRIC_NAMES = {"miou": ("mean_iou", "mIoU"), "pixel_accuracy": ("accuracy", "pixel accuracy"),
                "class_accuracy": ("mean_accuracy", "class accuracy")}  # fmt: skip
"""Key in ``metrics.json`` -> type on the hub, and words."""
PUBLIC_PREFIXES = (PREFIX, "hf-hub:", "hf_hub:")
"""Of values with a slash that are no path of this machine."""


class FinishedRun(NamedTuple):
    """What of a run is shared."""

    path: Path
    config: dict[str, Any]
    """Without paths of this machine."""
    metrics: dict[str, Any]
    model: Segmenter


def push(run: str | Path, name: str, private: bool = False) -> str:
    """Put a run on the hub: weights, config, metrics and a model card, in one commit.

    The config loses the paths of this machine. There is no licence in the card: it is the user's
    to choose, and so a card that is there already stays as it is.

    Args:
        run: folder of a finished run.
        name: ``user/name``; made if it is not there.
        private: of a new one: seen by its owner alone.

    Returns:
        Address of the commit.

    Raises:
        UserError: the run has not finished, no login, no access or no network.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{name!r} is no name of a model on the hub; give user/name")
    finished = read_run(Path(run))
    hub = require_hub()
    if hub.get_token() is None:
        raise not_logged_in()
    files: dict[str, Any] = {
        MODEL_FILE: finished.path / MODEL_FILE,
        CONFIG_FILE: yaml.safe_dump(finished.config, sort_keys=False).encode(),
        METRICS_JSON: (json.dumps(finished.metrics, indent=1) + "\n").encode(),
    }
    card = model_card(finished, name).encode()
    with hub_errors(name):
        api = hub.HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)
        if not api.file_exists(name, CARD):
            files[CARD] = card
        commit = api.create_commit(
            name,
            [hub.CommitOperationAdd(file, content) for file, content in files.items()],
            commit_message="Add the model, its metrics and its card",
        )
    return str(commit.commit_url)


def read_run(path: Path) -> FinishedRun:
    """What of a run is shared.

    Raises:
        UserError: no run, or one that has not finished.
    """
    for file in (MODEL_FILE, CONFIG_FILE, METRICS_JSON):
        if not (path / file).is_file():
            raise UserError(f"{path} is no finished run: no {file} in it")
    config = yaml.safe_load((path / CONFIG_FILE).read_text(encoding="utf-8"))
    metrics = json.loads((path / METRICS_JSON).read_text(encoding="utf-8"))
    if not isinstance(config, dict) or not isinstance(metrics, dict):
        raise UserError(f"{path}: {CONFIG_FILE} and {METRICS_JSON} must be mappings")
    return FinishedRun(path, without_paths(config), metrics, load_model(path))


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config in which a path is its last part, and the root of the data is left out."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, str) and not value.startswith(PUBLIC_PREFIXES):
            return value.replace("\\", "/").rstrip("/").rpartition("/")[2]
        return value

    cleaned: dict[str, Any] = clean(dict(config))
    if isinstance(cleaned.get("data"), dict):
        cleaned["data"]["root"] = None
    return cleaned


def model_card(run: FinishedRun, name: str) -> str:
    """The model card: front matter that the hub reads, and text for people."""
    hub = require_hub()
    data = run.config.get("data", {})
    dataset = str(data.get("name", "unknown"))
    method = str(run.config.get("method", "none"))
    metrics = {key: run.metrics[key] for key in METRIC_NAMES if run.metrics.get(key) is not None}
    results = [
        hub.EvalResult(
            task_type="image-segmentation", task_name="Semantic segmentation",
            dataset_type=dataset, dataset_name=dataset, dataset_split=data.get("val_split", "val"),
            metric_type=METRIC_NAMES[key][0], metric_name=METRIC_NAMES[key][1], metric_value=value,
        )
        for key, value in metrics.items()
    ]  # fmt: skip
    front = hub.ModelCardData(
        library_name="aicsd",
        pipeline_tag="image-segmentation",
        tags=["semantic-segmentation", "knowledge-distillation", method],
        metrics=[METRIC_NAMES[key][0] for key in metrics],
        model_name=name.split("/")[1],
        eval_results=results or None,
    )
    return f"---\n{front.to_yaml()}\n---\n\n{_text(run, name, method, dataset)}"


def _text(run: FinishedRun, name: str, method: str, dataset: str) -> str:
    config, metrics = run.config, run.metrics
    keys = config.get("student") or config.get("model") or {}
    teacher = metrics.get("teacher")
    trained = (
        "trained on labels alone" if method == "none"
        else f"distilled by **{method}** from the teacher `{config.get('teacher')}`"
    )  # fmt: skip
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
        for class_name, iou in metrics.get("per_class_iou", {}).items()
    )
    terms = "".join(
        f"| {term} | {options.get('weight')} | {options.get('schedule')} |\n"
        for term, options in config.get("terms", {}).items()
    )
    terms = f"\n| term | weight | schedule |\n| --- | --- | --- |\n{terms}" if terms else ""
    return f"""# {name.split("/")[1]}

DeepLabV3+ on {keys.get("backbone")} ({run.model.num_parameters() / 1e6:.2f} M parameters) for
semantic segmentation into {len(run.model.classes.names)} classes, {trained} with the package
`aicsd`, whose method is Adaptive Inter-Class Similarity Distillation
([arXiv 2308.04243](https://arxiv.org/abs/2308.04243)).

## Use

```bash
pip install 'aicsd[hub]'
aicsd predict {PREFIX}{name} photo.jpg --out predictions
```

```python
import aicsd

class_ids = aicsd.load_model("{PREFIX}{name}").predict("photo.jpg")  # (H, W) uint8
```

## Metrics

On the split `{config.get("data", {}).get("val_split", "val")}` of `{dataset}`
({metrics.get("images")} images), at the native resolution of the labels.

{head}
{rule}
{rows}
| class | IoU % |
| --- | --- |
{classes}
## Training

{config.get("epochs")} epochs on the split `{config.get("data", {}).get("train_split", "train")}` of
`{dataset}`, seed {config.get("seed")}. `{CONFIG_FILE}` has every setting, without the paths of the
machine.
{terms}
## Licence

None is named here: it is for the owner of this model to choose, in keeping with the terms of the
data, of the teacher and of the weights that training started from.
"""


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
