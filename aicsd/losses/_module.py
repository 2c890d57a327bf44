"""The module around a loss function."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from torch import nn


@dataclass(eq=False, repr=False)
class LossModule(nn.Module):
    """A loss function with its settings kept.

    A subclass is a dataclass whose fields are the settings, with the names and defaults of the
    function; it checks them in ``__post_init__``, and its ``forward`` hands ``self.settings`` on.
    """

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def settings(self) -> dict[str, Any]:
        """The fields by name."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
