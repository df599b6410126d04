"""Every setting of a training run, from YAML, from flags, and recorded in the run folder."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from index.extensions import choices, one_of
from index.identifiers.registry import load_scheme
from training.config.groups import OptimiserSettings, RunFolderSettings, SequenceSettings, ValidationSettings
from training.config.method_groups import GemsSettings, KnowledgeSettings, LoraSettings
from training.config.model_groups import BackboneSettings, CodeSettings, IdentifierSettings, SchemeSettings
from training.config.renamed import new_name, old_names
from training.errors import UserError
from training.inputs import YAML, InputError, read_text
from training.settings import DeviceName, RunSettings, SettingsGroup, merged, nested, parse_yaml, split

RECIPES = Path(__file__).parents[1] / "recipes"
METHODS = "training.methods.tuning"  # package of the tuning methods

# methods that can hold the weights of layers in bfloat16: exact ones beside them, or frozen ones
NARROW = ("gems", "subspace", "lora", "lora-moe")

SCRATCH = ("scratch", "t5-tiger")
DEFAULTS: dict[str | None, dict[str, Any]] = {
    "t5-tiger": {
        "backbone": {"heads": 6, "dropout": 0.1},
        "optimiser": {"relative": True, "learning_rate": 1e-2, "weight_decay": 0.0},
    }
}


def recipe_names() -> list[str]:
    """Return the names of the recipes, in alphabetical order."""
    return sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))


class ConfigError(UserError):
    """A setting is unknown or out of range."""


class TrainConfig(RunSettings):
    """Settings of `gems train`, in groups."""

    method: str = Field("gems", description="tuning method", json_schema_extra={"choices_of": METHODS})
    seed: int = Field(0, ge=0, description="seed of the initial weights, data order and dropout")
    threads: int | None = Field(None, ge=1, description="CPU threads (default: all cores)")
    device: DeviceName = Field(
        "auto", description="where the model is trained ('auto': on a GPU if there is one)"
    )
    search_attributes: tuple[str, ...] = Field(
        (),
        description="attributes whose values are found as a whole, such as article numbers, comma-separated",
    )
    fresh_share: float = Field(
        0.1,
        ge=0.001,
        le=0.9,
        description="share of items newer than the model among those that people take, for the weights of the pool",
    )
    backbone: BackboneSettings = BackboneSettings()
    identifiers: IdentifierSettings = IdentifierSettings()
    sequence: SequenceSettings = SequenceSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    gems: GemsSettings = GemsSettings()
    knowledge: KnowledgeSettings = KnowledgeSettings()
    lora: LoraSettings = LoraSettings()
    validation: ValidationSettings = ValidationSettings()
    run: RunFolderSettings = RunFolderSettings()
    codes: CodeSettings = CodeSettings()

    @field_validator("search_attributes", mode="before")
    @classmethod
    def _split(cls, names: Any) -> Any:
        """Split the comma-separated form of a flag."""
        return split(names) if isinstance(names, str) else names

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        return one_of(method, choices(METHODS))

    @model_validator(mode="before")
    @classmethod
    def _named_and_complete(cls, settings: Any) -> Any:
        """Refuse old names, and add the defaults of the backbone."""
        if not isinstance(settings, dict):
            return settings
        old = cls.renamed(settings)
        if old:
            raise ValueError("; ".join(old))
        given = {name: _as_dict(value) for name, value in settings.items()}
        backbone = given.get("backbone")
        name = backbone.get("name") if isinstance(backbone, dict) else None
        return merged(DEFAULTS.get(name, {}) if isinstance(name, str) else {}, given)

    @property
    def from_scratch(self) -> bool:
        """Whether the backbone starts from random weights, and has no knowledge to keep."""
        return self.backbone.name in SCRATCH

    @property
    def has_knowledge(self) -> bool:
        """Whether the weights that training starts from know what a null space may keep."""
        return self.knowledge.source == "histories" or not self.from_scratch

    @property
    def for_scheme(self) -> SchemeSettings:
        """The settings that an identifier scheme may read."""
        return SchemeSettings(**self.identifiers.model_dump(), seed=self.seed)

    @model_validator(mode="after")
    def _fit(self) -> TrainConfig:
        levels = load_scheme(self.identifiers.scheme).levels(self.for_scheme)
        room = self.sequence.max_query_tokens + levels + 2  # two markers
        if self.sequence.max_tokens < room:
            raise ValueError(
                f"sequence.max_tokens {self.sequence.max_tokens} has no room for one search; at least {room}"
            )
        if self.sequence.max_events > self.sequence.max_tokens:
            raise ValueError(
                f"sequence.max_events {self.sequence.max_events} cannot fit sequence.max_tokens "
                f"{self.sequence.max_tokens}: an event takes a token or more"
            )
        if self.identifiers.embeddings != "text" and self.identifiers.scheme != "semantic":
            raise ValueError(
                f"identifiers.embeddings {self.identifiers.embeddings!r} is for semantic identifiers; "
                f"{self.identifiers.scheme} ones have no use for it"
            )
        if self.codes.learner is not None:
            self._check_codes(self.codes.learner)
        if self.backbone.precision == "bfloat16" and self.method not in NARROW:
            raise ValueError(
                f"backbone.precision 'bfloat16' is not for {self.method!r}: steps of AdamW are lost in the rounding of "
                f"bfloat16 weights. Choose 'autocast', which keeps float32 ones, or a method of {', '.join(NARROW)}"
            )
        others = self.optimiser.other_weights
        if others is not None and not self.has_knowledge:
            raise ValueError(
                "optimiser.other_weights is for pretrained backbones: of one from scratch every weight is trained"
            )
        if others == "subspace" and self.method not in ("gems", "subspace"):
            raise ValueError(
                f"optimiser.other_weights 'subspace' is for 'gems' and 'subspace', not for {self.method!r}"
            )
        knows = self.knowledge.null_space and self.has_knowledge
        if self.gems.output_bases and knows and self.method == "gems":
            raise ValueError(
                "gems.output_bases leaves no input directions alone: drop it, or turn knowledge.null_space off"
            )
        if self.optimiser.relative and self.method in ("lora", "lora-moe"):
            raise ValueError(
                f"optimiser.relative is not for {self.method!r}, whose adapters start at zero; "
                "turn it off, and give optimiser.learning_rate"
            )
        return self

    def _check_codes(self, learner: str) -> None:
        identifiers = self.identifiers
        if identifiers.scheme != "semantic":
            raise ValueError(
                f"codes.learner {learner!r} is for semantic identifiers: add identifiers.scheme semantic"
            )
        if identifiers.embeddings != "text":
            raise ValueError(
                f"codes.learner {learner!r} starts from vectors of texts or of a file: leave out "
                f"identifiers.embeddings {identifiers.embeddings!r}"
            )
        if not self.from_scratch and self.method != "full":
            raise ValueError(
                f"codes.learner {learner!r} trains every weight of a pretrained backbone: choose method full, or a "
                "backbone from scratch"
            )

    @property
    def with_fixed_codes(self) -> TrainConfig:
        """The settings of the training after the codes were learned: with the steps and minutes that are left."""
        if self.codes.learner is None:
            return self
        left, optimiser = 1 - self.codes.share, self.optimiser
        minutes = None if optimiser.minutes is None else left * optimiser.minutes
        shorter = optimiser.model_copy(update={"epochs": left * optimiser.epochs, "minutes": minutes})
        return self.model_copy(update={"optimiser": shorter})

    @classmethod
    def renamed(cls, settings: Mapping[str, Any]) -> list[str]:
        """Return a sentence for every name of an older version among the settings, with its new name."""
        return [new_name(name) for name in old_names(settings)]

    @classmethod
    def load(
        cls, source: str | Path | None, overrides: Mapping[str, Any], recipe: str | None = None
    ) -> TrainConfig:
        """Read settings from a file, and apply overrides.

        source: name of a recipe, or YAML file; None for the defaults. The name of a recipe always means the recipe,
            whatever else bears it: a file of that name is `./NAME`.
        overrides: in groups or by dotted names; they win over the file.
        recipe: name of a recipe; the file wins over it.
        Raises `ConfigError` that names the setting.
        """
        layers = (cls.recipe(recipe), cls.read(source), overrides)
        return cls.combined(*layers, source="" if source is None else f"{source}: ")

    @classmethod
    def recipe(cls, name: str | None) -> dict[str, Any]:
        """Return the settings of a recipe; none for None. Raises `ConfigError`, with the nearest and all names."""
        if name is None:
            return {}
        known = recipe_names()
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"there is no recipe {name!r}{f'; do you mean {near[0]!r}?' if near else ''} Recipes: "
                f"{', '.join(known)}; settings of your own in a file are --config FILE"
            )
        return cls.read(name)

    @classmethod
    def read(cls, source: str | Path | None) -> dict[str, Any]:
        """Return the settings in a file as they are written there, see `load`; none for None. Raises `ConfigError`."""
        if source is None:
            return {}
        path = RECIPES / f"{source}.yaml" if str(source) in recipe_names() else Path(source)
        try:
            settings = parse_yaml(read_text(path, "settings in YAML", *YAML)) or {}
        except InputError as error:
            raise ConfigError(f"{error}. Recipes: {', '.join(recipe_names())}") from error
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
        if not isinstance(settings, dict):
            raise ConfigError(f"{path} must hold settings as 'name: value' lines")
        return settings

    @classmethod
    def combined(cls, *layers: Mapping[str, Any], source: str = "") -> TrainConfig:
        """Combine layers of settings, of which later ones win. Raises `ConfigError` that begins with the source."""
        settings: dict[str, Any] = {}
        for layer in layers:
            old = cls.renamed(layer)
            if old:
                raise ConfigError(source + "; ".join(old))
            try:
                settings = merged(settings, nested(layer), cls)
            except ValueError as error:
                raise ConfigError(f"{source}{error}") from error
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()
            )
            raise ConfigError(f"settings cannot be used: {problems}") from error


def _as_dict(value: Any) -> Any:
    """Return the values that a group was given."""
    return value.model_dump(exclude_unset=True) if isinstance(value, SettingsGroup) else value
