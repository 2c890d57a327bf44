"""Models on the Hugging Face hub: ``hf:user/name[@revision]``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from aicsd.errors import UserError, one_line
from aicsd.extras import require
from aicsd.runs import MODEL_FILE

PREFIX = "hf:"
FOLDER_FILES = (
    "config.json",
    "preprocessor_config.json",
    "classes.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""Files of a model of another library that are read beside its weights; the first is required."""


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
    hub = require("huggingface_hub", "hub", "models on the hub need huggingface_hub")
    if not sys.stderr.isatty():  # no progress bars without a terminal
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    return hub


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
