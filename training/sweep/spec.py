"""The specification of a sweep: common settings, named variants of them, seeds, and measures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from training.config import TrainConfig
from training.errors import UserError
from training.inputs import YAML, InputError, read_text
from training.settings import MOST, MOST_BEAMS, SEEDS, parse_yaml

RECIPE = "recipe"


class SweepError(UserError):
    """A sweep cannot be read or run."""


class SweepSpec(BaseModel):
    """A sweep file. `variants` maps a name to the settings in which it differs from `settings`.

    Settings are in groups or have dotted names, as in the file of a training. `recipe` among them names a recipe, over
    which they win; that of a variant takes the place of the one in `settings`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0, le=SEEDS)], ...] = Field((0,), min_length=1)
    cases: int = Field(2000, ge=1, le=MOST, description="test cases, drawn once")
    beam_width: int = Field(20, ge=1, le=MOST_BEAMS)
    exclude_history: bool | None = None
    baseline: str | None = Field(None, description="variant that the others are compared with, seed by seed")
    text_tokens: int = Field(8192, ge=0, le=MOST, description="held-out general text; 0 for none")

    @classmethod
    def load(cls, path: Path) -> SweepSpec:
        """Read a sweep file. Raises `SweepError` for an invalid file or variant, before anything runs."""
        try:
            spec = cls.model_validate(parse_yaml(read_text(path, "a sweep in YAML", *YAML)))
        except InputError as error:
            raise SweepError(str(error)) from error
        except ValueError as error:  # one of them is pydantic's
            raise SweepError(" ".join(f"{path} is no sweep: {error}".split())) from error
        if spec.baseline is not None and spec.baseline not in spec.variants:
            raise SweepError(f"{path}: the baseline {spec.baseline!r} is none of the variants")
        for variant in spec.variants:
            if "/" in variant or variant.startswith("."):
                raise SweepError(f"variant {variant!r} names a folder: no slash, no dot in front")
            spec.config(variant, spec.seeds[0])
        return spec

    def measures(self) -> dict[str, Any]:
        """Return the settings of the measurement of each run."""
        return self.model_dump(mode="json", include={"cases", "beam_width", "exclude_history", "text_tokens"})

    def config(self, variant: str, seed: int) -> TrainConfig:
        """Return the settings of one run. Raises `SweepError` if they are invalid."""
        layers = [dict(self.settings), dict(self.variants[variant])]
        recipe = [layer.pop(RECIPE, None) for layer in layers]
        try:
            chosen = TrainConfig.recipe(recipe[1] or recipe[0])
            return TrainConfig.combined(chosen, *layers, {"seed": seed})
        except UserError as error:
            raise SweepError(f"variant {variant!r}: {error}") from error
