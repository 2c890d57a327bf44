"""Models on the Hugging Face hub: reading ``hf:user/name[@revision]``, and pushing a run."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aicsd.errors import UserError, one_line
from aicsd.runs import MODEL_FILE, FinishedRun, RunFolder
from aicsd.types import has_own_name

PREFIX = "hf:"
CARD = "README.md"
METRIC_NAMES = {"miou": ("mean_iou", "mIoU"), "pixel_accuracy": ("accuracy", "pixel accuracy"),
                "class_accuracy": ("mean_accuracy", "class accuracy")}  # fmt: skip
"""Key in ``metrics.json`` -> type on the hub, and words."""
FOLDER_FILES = (
    "config.json", "preprocessor_config.json", "classes.txt", "vocab.json", "merges.txt",
    "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
"""What is read of a model of another library, beside its weights; it must have the first."""
PUBLIC_NAME = re.compile(r"[A-Za-z][\w-]+:(?![/\\~.])")
"""Beginning of a value that is no local path, though it may hold a slash: ``PREFIX:user/name``."""


class NetworkFacts(NamedTuple):
    """Facts on a network without a run, for its model card."""

    name: str
    """Its backbone or architecture."""
    classes: tuple[str, ...]
    parameters: int


def is_hub_name(path: str | Path) -> bool:
    """Whether ``path`` names a model on the hub."""
    return str(path).startswith(PREFIX)


def download(name: str, *files: str) -> Path:
    """The first of ``files`` that the model ``hf:user/name[@revision]`` has.

    Raises:
        UserError: no such model or file, no access, or no network.
    """
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    hub = require_hub()
    with hub_errors(name):
        for file in files[:-1]:
            with suppress(hub.errors.EntryNotFoundError):
                return Path(hub.hf_hub_download(repo, file, revision=revision or None))
        return Path(hub.hf_hub_download(repo, files[-1], revision=revision or None))


def download_folder(name: str) -> Path:
    """The folder of a model of another library: its JSON files and its safetensors weights.

    Raises:
        UserError: no such model, no safetensors weights, no access, or no network.
    """
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    hub = require_hub()

    def fetch(file: str) -> Path | None:
        try:
            return Path(hub.hf_hub_download(repo, file, revision=revision or None))
        except hub.errors.LocalEntryNotFoundError:  # no network
            raise
        except hub.errors.EntryNotFoundError:
            return None

    with hub_errors(name):
        config = fetch(FOLDER_FILES[0])
        if config is None:
            raise UserError(f"{name} has no {FOLDER_FILES[0]}: it holds no network of a library")
        for file in FOLDER_FILES[1:]:
            fetch(file)
        if fetch(MODEL_FILE) is None:
            index = fetch(f"{MODEL_FILE}.index.json")
            if index is None:
                raise UserError(
                    f"{name} has no safetensors weights; other files could run code and are not "
                    "read"
                )
            parts = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
            for file in sorted(set(parts.values())):
                fetch(file)
    return config.parent


def require_hub() -> Any:
    """The module ``huggingface_hub``."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "models on the hub need huggingface_hub: pip install 'aicsd[hub]'"
        ) from error
    if not sys.stderr.isatty():  # no progress bars without a terminal
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    return huggingface_hub


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn every error of the hub into one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{name} is not a name of a model; give user/name") from error
    except errors.LocalTokenNotFoundError as error:
        raise not_logged_in() from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"no model {name} on the hub, or it is private: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name}: no such revision on the hub") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(name, error) from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{name} contains no aicsd model file") from error
    except errors.HfHubHTTPError as error:
        reason = one_line(error)
        raise UserError(f"the hub refused {name}: {reason}") from error
    except Exception as error:
        # the HTTP library below differs between versions of huggingface_hub
        library = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and not library.startswith(("httpx", "httpcore")):
            raise
        raise _unreachable(name, error) from error


def not_logged_in() -> UserError:
    """Build the error of a missing token."""
    return UserError("not logged in to the hub: hf auth login, or set HF_TOKEN")


def _unreachable(name: str, error: Exception) -> UserError:
    cause = error.__cause__ or error
    reason = one_line(cause, 120)
    return UserError(f"{name}: the hub cannot be reached ({reason}); is there a network?")


def push(run: str | Path, name: str, private: bool = False) -> str:
    """Put a run on the hub: weights, config, metrics and a model card, in one commit.

    The config loses the paths of this machine. There is no licence in the card: it is the user's
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
    """What of a run is shared: its config without the paths of this machine, and its metrics."""
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
            task_type="image-segmentation", task_name="Semantic segmentation",
            dataset_type=dataset, dataset_name=dataset, dataset_split=data.get("val_split", "val"),
            metric_type=METRIC_NAMES[key][0], metric_name=METRIC_NAMES[key][1], metric_value=value,
        )
        for key, value in metrics.items()
    ]  # fmt: skip
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
        library_name="aicsd", pipeline_tag="image-segmentation", tags=["semantic-segmentation"],
        model_name=name.split("/")[1],
    )  # fmt: skip
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
        "trained on labels alone" if run.is_alone
        else f"distilled by **{run.method}** from the teacher `{config.get('teacher')}`"
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
    """How the metrics were measured, as the end of a sentence."""
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
