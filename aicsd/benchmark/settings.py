"""Settings of a measurement of costs; reading them needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aicsd.errors import UserError
from aicsd.models.settings import ModelConfig
from aicsd.run_config import DistillConfig

if TYPE_CHECKING:
    from aicsd.methods import Recipe


@dataclass(frozen=True, kw_only=True)
class CostConfig(DistillConfig):
    """A config of ``aicsd train`` or ``aicsd distill`` whose cost is measured."""

    run: str = ""
    """unused: nothing is written."""
    model: ModelConfig | None = None
    """the network of a config of aicsd train, which has no student."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model is not None and self.student != ModelConfig():
            raise UserError(
                "the config has both model (of aicsd train) and student (of aicsd distill); "
                "leave one of them out"
            )

    @property
    def network(self) -> ModelConfig:
        """Network to train."""
        return self.student if self.model is None else self.model

    @property
    def recipe(self) -> Recipe:
        """Recipe of the distillation; labels alone for a config of ``aicsd train``."""
        from aicsd.engine.run_recipe import recipe_of, recipe_of_labels

        if self.model is not None:
            return recipe_of_labels(self, self.terms)
        return recipe_of(self)
