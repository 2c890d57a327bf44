"""Optional libraries, which the extras of the package install."""

from __future__ import annotations

import importlib
from typing import Any

from aicsd.errors import UserError


def require(module: str, extra: str, need: str) -> Any:
    """Import an optional library.

    Args:
        module: name of the module.
        extra: extra of the package that installs it.
        need: beginning of the message, such as ``videos need PyAV``.

    Raises:
        UserError: the library is not installed, or cannot be loaded.
    """
    try:
        importlib.import_module(module.partition(".")[0])  # a submodule may be in memory without it
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{need}: pip install 'aicsd[{extra}]'") from error
