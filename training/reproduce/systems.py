"""The table of systems: data that names recipes, baselines and floors, so that a new system needs no code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.baselines.run import SETTINGS
from training.baselines.settings import BaselineSettings, settings_from
from training.config import TrainConfig, recipe_names
from training.errors import UserError
from training.evaluation.floors import FLOORS
from training.inputs import YAML, read_text
from training.settings import Clock, DeviceName, flat, parse_yaml

TABLE = Path(__file__).parent / "systems.yaml"
Kind = Literal["floor", "baseline", "recipe"]
ENDLESS = 1e6  # epochs of a recipe, whose training ends by the clock


class ReproduceError(UserError):
    """The systems cannot be reproduced as requested."""


@dataclass(frozen=True)
class RunSize:
    """Time and place of one training.

    minutes, clock: length of the training, and by which clock (`training.loop.clock.minutes_of`).
    device: where recipes are trained; baselines are trained on the CPU.
    """

    minutes: float
    clock: Clock
    threads: int
    device: DeviceName


class System(BaseModel):
    """A row of the table.

    floor, baseline, recipe: what it is; one of them is given.
    settings: settings in which it differs from the defaults or from the recipe, in groups or by dotted names.
    grid: settings that are tried, each with its values. The first of each is tried first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    floor: str | None = None
    baseline: str | None = None
    recipe: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(name is not None for name in (self.floor, self.baseline, self.recipe)) != 1:
            raise ValueError("give one of floor, baseline and recipe")
        if self.floor is not None and (self.settings or self.grid):
            raise ValueError("a floor has no settings")
        if empty := [name for name, values in self.grid.items() if not values]:
            raise ValueError(f"the grid of {empty[0]} has no value")
        return self

    @property
    def kind(self) -> Kind:
        return "floor" if self.floor else "baseline" if self.baseline else "recipe"

    @property
    def of(self) -> str:
        """The name of the floor, baseline or recipe."""
        return self.floor or self.baseline or self.recipe or ""

    @property
    def exists(self) -> bool:
        """Whether this build has the floor, baseline or recipe."""
        known: Mapping[Kind, Iterable[str]] = {
            "floor": FLOORS, "baseline": SETTINGS, "recipe": recipe_names()
        }  # fmt: skip
        return self.of in known[self.kind]

    def points(self, most: int) -> list[dict[str, Any]]:
        """Return the first `most` points of the grid, each a value for every setting of it; one of nothing without."""
        values = product(*self.grid.values())
        return [dict(zip(self.grid, point, strict=True)) for point in islice(values, most)]

    def baseline_settings(self, given: Mapping[str, Any], seed: int, run: RunSize) -> BaselineSettings:
        """Return the settings of a training of a baseline. Raises `UserError`.

        given: a point of the grid.
        """
        own = {"seed": seed, "threads": run.threads, "minutes": run.minutes, "clock": run.clock}
        return settings_from(SETTINGS[self.of], self.settings | dict(given) | own)

    def recipe_settings(self, given: Mapping[str, Any], seed: int, run: RunSize) -> TrainConfig:
        """Return the settings of a training by a recipe. Raises `UserError`.

        given: a point of the grid.
        """
        own = {
            "seed": seed, "threads": run.threads, "device": run.device, "optimiser.minutes": run.minutes,
            "optimiser.clock": run.clock,
        }  # fmt: skip
        endless = {"optimiser.epochs": ENDLESS}
        return TrainConfig.load(None, endless | flat(self.settings) | dict(given) | own, self.of)

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise `UserError` if it cannot be trained with these settings."""
        size = RunSize(minutes=1.0, clock="wall", threads=1, device="cpu")
        if self.kind == "baseline":
            self.baseline_settings(given, 0, size)
        elif self.kind == "recipe":
            self.recipe_settings(given, 0, size)


def load_systems(path: Path | None = None) -> dict[str, System]:
    """Read a table of systems by name; None for that of the program. Raises `ReproduceError`."""
    path = path or TABLE
    try:
        table = parse_yaml(read_text(path, "a table of systems in YAML", *YAML))
    except (UserError, ValueError) as error:
        raise ReproduceError(f"{path}: {error}") from error
    if not isinstance(table, dict) or not table:
        raise ReproduceError(f"{path} must hold systems as 'name: {{recipe: …}}'")
    systems = {}
    for name, row in table.items():
        if not isinstance(name, str) or "/" in name or name.startswith("."):
            raise ReproduceError(f"{path}: system {name!r} names a folder: no slash, no dot in front")
        try:
            systems[name] = System.model_validate(row)
        except ValidationError as error:
            said = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
            raise ReproduceError(f"{path}, system {name!r}: {said}") from error
    return systems


def choose(systems: Mapping[str, System], names: Sequence[str] | None) -> dict[str, System]:
    """Return the named systems in the order of the table; all for None. Raises `ReproduceError` for unknown names."""
    if names is None:
        return dict(systems)
    if unknown := [name for name in names if name not in systems]:
        raise ReproduceError(f"no system is called {', '.join(unknown)}; there are: {', '.join(systems)}")
    return {name: system for name, system in systems.items() if name in names}


def check(systems: Mapping[str, System], tuning: int) -> None:
    """Raise `ReproduceError` for systems that this build lacks, too small grids, and invalid settings."""
    missing = {name: system for name, system in systems.items() if not system.exists}
    if missing:
        named = "; ".join(f"{name} (no {system.kind} {system.of!r})" for name, system in missing.items())
        rest = ",".join(name for name in systems if name not in missing) or "…"
        raise ReproduceError(f"this build lacks systems: {named}; leave them out: --systems '{rest}'")
    for name, system in systems.items():
        if system.kind == "floor":
            continue
        if len(system.points(tuning)) < tuning:
            raise ReproduceError(
                f"{name!r} has {len(system.points(tuning))} settings to try; --tuning must not be larger, as all "
                "systems get the same number"
            )
        for point in system.points(tuning):
            try:
                system.check(point)
            except UserError as error:
                raise ReproduceError(f"system {name!r}: {error}") from error
