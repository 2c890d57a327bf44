"""Models on the Hugging Face hub, by names such as ``hf:user/name`` and ``hf:user/name@v1``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aicsd.errors import UserError

PREFIX = "hf:"


def is_hub_name(path: str | Path) -> bool:
    """Whether ``path`` names a model on the hub."""
    return str(path).startswith(PREFIX)


def download(name: str, file: str) -> Path:
    """``file`` of the model ``hf:user/name[@revision]``, from the hub or its cache.

    Raises:
        UserError: no such model or file, no access, or no network.
    """
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    hub = require_hub()
    with hub_errors(name):
        return Path(hub.hf_hub_download(repo, file, revision=revision or None))


def require_hub() -> Any:
    """The module ``huggingface_hub``."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError(
            "models on the hub need huggingface_hub: pip install 'aicsd[hub]'"
        ) from error
    if not sys.stderr.isatty():  # bars are for somebody who watches
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    return huggingface_hub


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Whatever goes wrong with the hub, in one line."""
    from huggingface_hub import errors

    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{name} is no name of a model; give user/name") from error
    except errors.LocalTokenNotFoundError as error:
        raise not_logged_in() from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"no model {name} on the hub, or it is private: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name}: no such revision on the hub") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(name, error) from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{name} is no model of aicsd: it has no safetensors file of one"
        ) from error
    except errors.HfHubHTTPError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the hub refused {name}: {reason}") from error
    except Exception as error:
        # the HTTP library below differs between versions of huggingface_hub
        library = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError) and not library.startswith(("httpx", "httpcore")):
            raise
        raise _unreachable(name, error) from error


def not_logged_in() -> UserError:
    """The error of a missing token."""
    return UserError("not logged in to the hub: hf auth login, or set HF_TOKEN")


def _unreachable(name: str, error: Exception) -> UserError:
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split())[:120]
    return UserError(f"{name}: the hub cannot be reached ({reason}); is there a network?")
