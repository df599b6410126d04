"""The settings of the baselines. The description of each field is its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from index.sequence.events import Task
from training.errors import UserError
from training.settings import CLOCK_HELP, Clock, RunSettings

Users = Literal["leave-one-out", "chronological"]
ItemKind = Literal["id", "language-init", "adapter", "alphafuse"]
Items = Literal[ItemKind, "ensemble"]


class BaselineError(UserError):
    """A baseline cannot be trained with these settings or data."""


class BaselineSettings(RunSettings):
    """Settings of all baselines."""

    name: ClassVar[str]
    tasks: ClassVar[tuple[Task, ...]]  # those that it answers
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)  # of AdamW

    users: Users = Field(
        "leave-one-out",
        description="'leave-one-out': the last two events of every user are held out; 'chronological': the latest "
        "tenth of the users is tested, the tenth before it validated, both unseen in training",
    )
    exclude_history: bool | None = Field(
        None,
        description="never rank items of the history, floors too (default: unless somebody takes an item again)",
    )
    sampled_negatives: int | None = Field(
        None, ge=1, description="rank test targets among N sampled items only; papers use N = 99"
    )
    validation_cases: int = Field(4000, ge=1, description="validation cases, drawn once")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    final_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="learning rate after all epochs, as a share of the first: a cosine; 1: constant",
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    patience: int = Field(5, ge=1, description="validations without improvement before training stops")
    seed: int = Field(0, ge=0, description="seed of the initial weights, data order and dropout")
    threads: int | None = Field(None, ge=1, description="CPU threads (default: all cores)")
    minutes: float | None = Field(
        None, gt=0, description="length of training in minutes: the last epoch ends then, if not before"
    )
    clock: Clock = Field("wall", description=CLOCK_HELP)

    @property
    def system(self) -> str:
        """The name in comparisons."""
        return self.name

    def save(self, path: Path) -> None:
        """Write the settings as YAML."""
        path.write_text(
            yaml.safe_dump({"baseline": self.name} | self.model_dump(mode="json"), sort_keys=False), "utf-8"
        )


class SASRecSettings(BaselineSettings):
    """Settings of `gems baseline sasrec`."""

    name: ClassVar[str] = "sasrec"
    tasks: ClassVar[tuple[Task, ...]] = (Task.RECOMMENDATION,)
    # as in the authors' code, and in our own model; at 0.999 a rare item moves too far at each of its events
    betas: ClassVar[tuple[float, float]] = (0.9, 0.98)

    items: Items = Field("id", description="where item vectors come from")
    hidden: int = Field(128, ge=2, le=16384, description="width of the model and of the item vectors")
    null: int | None = Field(
        None,
        ge=1,
        description="'alphafuse': learned dimensions of the null space (default: half of --hidden)",
    )
    threshold: float | None = Field(
        None, ge=0, description="'alphafuse': split by relative singular value instead of by --null"
    )
    semantic_scale: float = Field(
        0.05, gt=0, description="'alphafuse': length of the frozen part, as a multiple of unit variance"
    )
    layers: int = Field(2, ge=1, le=1000, description="transformer blocks")
    heads: int = Field(2, ge=1, le=1024, description="attention heads")
    dropout: float = Field(0.4, ge=0, lt=1, description="dropout on inputs, attention and block outputs")
    scores: Literal["cosine", "product"] = Field(
        "cosine", description="of the state with an item's vector; as products, the lengths of vectors count"
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="scores are divided by it before the softmax (default: 0.07 for cosines, else 1)",
    )
    max_events: int = Field(50, ge=1, le=1_000_000, description="latest events that are read")
    event_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the events that are left out, as inputs and as targets, drawn again each epoch",
    )
    learning_rate: float = Field(2e-3, gt=0, description="of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    batch_size: int = Field(256, ge=1, description="histories a step")
    epochs: int = Field(40, ge=1, description="passes over the histories at most")

    @property
    def kinds(self) -> tuple[ItemKind, ...]:
        """The item vectors of each model: one, or those of an ensemble."""
        return ("id", "adapter") if self.items == "ensemble" else (self.items,)

    @property
    def system(self) -> str:
        return f"{self.name}, {self.items}"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} does not divide among {self.heads} heads")
        if self.null is not None and self.threshold is not None:
            raise ValueError("give null or threshold, not both: one follows from the other and hidden")
        if self.null is not None and self.null >= self.hidden:
            raise ValueError(f"null {self.null} leaves no row space in vectors of {self.hidden} dimensions")
        return self


class NCFSettings(BaselineSettings):
    """Settings of `gems baseline ncf`."""

    name: ClassVar[str] = "ncf"
    tasks: ClassVar[tuple[Task, ...]] = (Task.RECOMMENDATION,)

    hidden: int = Field(
        64, ge=4, le=16384, description="width of the vectors of users and items, in each of the two parts"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout on the inputs of the perceptron")
    negatives: int = Field(4, ge=1, le=10_000, description="random items for each logged one")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW")
    weight_decay: float = Field(1e-2, ge=0, description="decoupled weight decay")
    batch_size: int = Field(1024, ge=1, description="logged interactions a step")
    epochs: int = Field(30, ge=1, description="passes over the interactions at most")
    validation_cases: int = Field(1000, ge=1, description="validation cases, drawn once")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.users != "leave-one-out":
            raise ValueError("ncf has no vector for users that it did not train on; use 'leave-one-out'")
        return self


class DenseSettings(BaselineSettings):
    """Settings of `gems baseline dense`."""

    name: ClassVar[str] = "dense"
    tasks: ClassVar[tuple[Task, ...]] = (Task.SEARCH,)

    pairs: Literal["searches", "both"] = Field(
        "searches",
        description="what it learns from: logged searches, or also items that people chose one after the other",
    )
    rounds: int = Field(
        3, ge=0, description="the first with in-batch negatives, later ones with mined ones too; 0: not tuned"
    )
    steps: int = Field(100, ge=1, description="steps of a round")
    batch_size: int = Field(64, ge=2, description="pairs of query and item a step")
    mined: int = Field(50, ge=1, description="hard negatives are drawn from the N best-ranked items")
    frozen_layers: int = Field(4, ge=0, description="lower layers that are not tuned, token rows too")
    max_tokens: int = Field(64, ge=4, le=1_000_000, description="tokens of a text; longer ones are cut")
    temperature: float = Field(0.05, gt=0, description="cosines are divided by it before the softmax")
    learning_rate: float = Field(5e-5, gt=0, description="of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay")
    refresh_every: int | None = Field(
        None,
        ge=1,
        description="steps after which items are encoded and negatives mined again (default: once a round)",
    )


class UnifiedSSRSettings(BaselineSettings):
    """Settings of `gems baseline unified-ssr`."""

    name: ClassVar[str] = "unified-ssr"
    tasks: ClassVar[tuple[Task, ...]] = (Task.SEARCH, Task.RECOMMENDATION)

    hidden: int = Field(32, ge=2, le=16384, description="width of the model and of all vectors")
    layers: int = Field(2, ge=1, le=1000, description="layers, shared by the two views")
    heads: int = Field(4, ge=1, le=1024, description="attention heads")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout on inputs, attention and layer outputs")
    negatives: int = Field(4, ge=1, le=10_000, description="random items for each chosen one")
    correlation: float = Field(
        0.1, ge=0, description="weight of the loss that relates the two views of a session"
    )
    user_vectors: bool = Field(False, description="a learned vector for each user, with 'leave-one-out'")
    max_events: int = Field(50, ge=1, le=1_000_000, description="latest events that are read")
    learning_rate: float = Field(5e-3, gt=0, description="of AdamW")
    batch_size: int = Field(16, ge=2, description="histories a step")
    epochs: int = Field(100, ge=1, description="passes over the histories at most")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} does not divide among {self.heads} heads")
        if self.user_vectors and self.users != "leave-one-out":
            raise ValueError("user_vectors has none for users that it did not train on; use 'leave-one-out'")
        return self


class DreamRecSettings(BaselineSettings):
    """Settings of `gems baseline dreamrec`."""

    name: ClassVar[str] = "dreamrec"
    tasks: ClassVar[tuple[Task, ...]] = (Task.RECOMMENDATION,)

    items: Literal["id", "alphafuse"] = Field("id", description="where item vectors come from")
    hidden: int = Field(
        384,
        ge=2,
        le=16384,
        description="'id': width of the model; 'alphafuse' has that of the language vectors",
    )
    null: int | None = Field(
        None, ge=1, description="'alphafuse': learned dimensions (default: half of the language vectors')"
    )
    threshold: float | None = Field(
        None, ge=0, description="'alphafuse': split by relative singular value instead of by --null"
    )
    layers: int = Field(2, ge=1, le=1000, description="transformer blocks over the history")
    heads: int = Field(2, ge=1, le=1024, description="attention heads")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout on inputs, attention and block outputs")
    levels: int = Field(1000, ge=1, le=100_000, description="levels of noise in training")
    steps: int = Field(20, ge=1, le=100_000, description="steps from noise to an answer")
    guidance: float = Field(2.0, ge=0, description="how far an answer goes beyond the unguided one")
    unguided: float = Field(0.1, ge=0, lt=1, description="share of training targets without a guide")
    max_events: int = Field(50, ge=1, le=1_000_000, description="latest events that are read")
    batch_size: int = Field(256, ge=1, description="histories a step")
    epochs: int = Field(100, ge=1, description="passes over the histories at most")

    @property
    def system(self) -> str:
        return f"{self.name}, {self.items}"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.items == "id" and self.hidden % self.heads:
            raise ValueError(f"hidden {self.hidden} does not divide among {self.heads} heads")
        if self.null is not None and self.threshold is not None:
            raise ValueError("give null or threshold, not both: one follows from the other")
        return self


Settings = TypeVar("Settings", bound=BaselineSettings)


def settings_by_name(kind: type[BaselineSettings] = BaselineSettings) -> dict[str, type[BaselineSettings]]:
    """Return the settings of every baseline whose module is imported, by the name of the baseline."""
    found = {kind.name: kind} if "name" in vars(kind) else {}
    for below in kind.__subclasses__():
        found |= settings_by_name(below)
    return found


def settings_from(kind: type[Settings], given: dict[str, Any]) -> Settings:
    """Return validated settings. Raises `BaselineError` that names each invalid setting."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'settings'}: {problem['msg']}"
            for problem in error.errors()
        )
        raise BaselineError(problems) from error
