"""Every setting of a training run: one field each, from YAML, from flags, and recorded in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from index.extensions import choices, one_of
from index.identifiers.registry import load_scheme, scheme_names
from training.errors import UserError
from training.settings import RunSettings

RECIPES = Path(__file__).parent / "recipes"
METHODS = "training.methods.tuning"  # package of the tuning methods

SCRATCH = ("scratch", "t5-tiger")
DEFAULTS: dict[str | None, dict[str, Any]] = {
    "t5-tiger": {
        "heads": 6,
        "dropout": 0.1,
        "relative_rate": True,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
    }
}


class ConfigError(UserError):
    """A setting is unknown or out of range."""


class TrainConfig(RunSettings):
    """Settings of `gems train`. The description of each field is its help text."""

    # backbone
    backbone: str = Field(
        "smollm2-135m",
        description="'smollm2-135m', 'scratch', 't5-tiger', or a Hugging Face name or folder",
    )
    layers: int | None = Field(
        None, ge=1, description="keep the first N layers (from scratch: build N; 't5-tiger': 4)"
    )
    hidden: int = Field(128, ge=8, description="from scratch: width of the model")
    heads: int = Field(4, ge=1, description="from scratch: attention heads ('t5-tiger': 6)")
    dropout: float = Field(
        0.3, ge=0, lt=1, description="from scratch: dropout on embeddings and block outputs ('t5-tiger': 0.1)"
    )
    text_vocabulary: int = Field(
        8000, ge=300, description="from scratch: size of the BPE trained on the catalogue"
    )

    # identifiers
    scheme: str = Field("semantic", description="identifier scheme")
    codebooks: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (256, 256),
        min_length=1,
        description="'semantic': codes per level, comma-separated; a level that "
        "separates collisions is added",
    )
    item_embeddings: Literal["text", "alphafuse"] = Field(
        "text",
        description="'semantic': codes of the items' vectors, or of those fused with what people chose (AlphaFuse)",
    )
    item_encoder: str = Field(
        "minilm",
        description="text encoder of item vectors: 'minilm', or a sentence-transformers or Hugging Face "
        "encoder by folder or name",
    )
    item_vectors: Path | None = Field(
        None, description="file with item vectors (.parquet, .npz, .npy) in place of the encoder's"
    )
    fused_hidden: int = Field(
        128,
        ge=4,
        multiple_of=2,
        description="'alphafuse': width of fused vectors; half is meaning, half is learned",
    )
    fused_epochs: int = Field(
        40, ge=1, description="'alphafuse': passes over the histories at most; it stops early"
    )
    quantiser: Literal["kmeans", "rqvae"] = Field(
        "kmeans", description="'semantic': what makes the codes of item vectors"
    )
    code_capacity: float = Field(
        2.0, ge=1, description="'semantic': a code names at most about so many times the mean number of items"
    )
    spelling: int = Field(12, ge=4, description="'text': tokens of an identifier at most")
    normalisation: Literal["level", "vocabulary"] = Field(
        "level", description="softmax over the level's codebook, or over the whole vocabulary"
    )

    # sequences
    max_events: int = Field(50, ge=2, description="events of a sequence, the one to be predicted among them")
    max_tokens: int = Field(512, ge=48, description="tokens of a sequence or prompt")
    max_query_tokens: int = Field(32, ge=1, description="longer queries are cut")
    targets: int = Field(
        4,
        ge=1,
        description="encoder-decoder: items of a logged sequence to be predicted, drawn anew each epoch",
    )
    title_queries: float = Field(
        0.1,
        ge=0,
        le=10,
        description="titles as extra search queries, as a share of the items to be predicted",
    )
    query_dropout: float = Field(
        0.0, ge=0, le=1, description="share of logged searches trained as recommendations, their query hidden"
    )

    # optimisation
    method: str = Field("gems", description="tuning method")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate ('t5-tiger': 0.01)")
    relative_rate: bool = Field(
        False, description="multiply the rate of each weight by its root mean square ('t5-tiger': True)"
    )
    weight_decay: float = Field(
        0.01, ge=0, description="decoupled weight decay ('t5-tiger': 0; 'gems' and 'subspace' have none)"
    )
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps with rising learning rate")
    final_rate: float = Field(
        0.05, ge=0, le=1, description="learning rate at the end, as a share of the peak"
    )
    clip: float = Field(
        1.0, gt=0, description="largest gradient norm (under 'gems', of each family of subspaces)"
    )
    batch_size: int = Field(128, ge=1, description="logged sequences a step")
    part_tokens: int = Field(8192, ge=64, description="tokens of one forward pass; a step takes several")
    epochs: float = Field(10, gt=0, description="passes over the logged sequences")
    minutes: float | None = Field(
        None, gt=0, description="length of training in minutes: the schedule ends then, if not before"
    )
    seed: int = Field(0, ge=0, description="seed of the initial weights, data order and dropout")
    threads: int | None = Field(None, ge=1, description="CPU threads (default: all cores)")

    # GEMS; `subspace` uses rank, scale, refresh and moments, too
    rank: float = Field(
        0.25, gt=0, description="shared subspace: share of a layer's inputs up to 1, a count above"
    )
    task_rank: float | None = Field(
        None, gt=0, description="subspace of each task, in the same way (default: half of the shared one)"
    )
    scale: float = Field(1.0, gt=0, description="subspace updates are this many times as long")
    rank_scaling: bool = Field(
        False, description="lengthen a subspace update by sqrt(inputs / rank), to the length of Adam's"
    )
    growth_limit: float | None = Field(
        None, gt=1, description="a subspace update grows by at most this factor a step"
    )
    refresh_every: int = Field(200, ge=1, description="steps between refreshes of a layer's subspaces")
    stagger: int = Field(10, ge=1, description="groups of layers that take turns to refresh")
    stale_moments: bool = Field(False, description="keep Adam's moments as they are at a refresh")
    multi_subspace: bool = Field(True, description="a subspace for each task beside the shared one")
    deflation: bool = Field(True, description="task subspaces complement the shared one")
    joint_gradients: bool = Field(
        False, description="gradients of each task at refreshes only, the joint one in between: cheaper"
    )
    gate: Literal["hypergradient", "prior", "uniform"] = Field(
        "hypergradient", description="how the tasks' updates are weighted"
    )
    gate_temperature: float = Field(1.5, gt=0, description="softmax temperature of the gate")
    null_space: bool = Field(True, description="leave the directions of general text alone (pretrained only)")
    knowledge: Path | None = Field(
        None, description="knowledge basis of this backbone to use (default: collect one)"
    )
    knowledge_energy: float = Field(
        0.9, gt=0, le=1, description="share of the inputs' energy on general text that is left alone"
    )
    knowledge_cap: float = Field(
        0.5, gt=0, lt=1, description="largest share of a layer's input directions that is left alone"
    )
    knowledge_tokens: int = Field(65536, ge=256, description="tokens of general text for the knowledge basis")

    # LoRA
    lora_rank: int = Field(32, ge=1, description="'lora', 'lora-moe': rank of an adapter")
    lora_alpha: float = Field(64, gt=0, description="'lora', 'lora-moe': adapters are scaled by alpha / rank")
    experts: int = Field(4, ge=1, description="'lora-moe': experts of a layer")

    # validation and checkpoints
    validate_every: float = Field(1.0, gt=0, description="epochs between validations")
    validation_cases: int = Field(1000, ge=1, description="validation cases, drawn once")
    stop_on: Literal["loss", "ndcg@10"] = Field(
        "loss", description="what early stopping watches; ndcg@10 ranks through the serving engine"
    )
    patience: int = Field(3, ge=1, description="validations without improvement before training stops")
    checkpoint_every: float = Field(5.0, gt=0, description="minutes between checkpoints")
    conflict_cases: int = Field(
        32, ge=0, description="validation cases on which the tasks' conflict is measured (0: not at all)"
    )
    tensorboard: bool = Field(False, description="mirror the figures to RUN/tensorboard")

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        return one_of(method, choices(METHODS))

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, scheme: str) -> str:
        return one_of(scheme, scheme_names())

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, settings: Any) -> Any:
        """What suits the backbone where it is not given."""
        return (
            DEFAULTS.get(settings.get("backbone"), {}) | settings if isinstance(settings, dict) else settings
        )

    @property
    def from_scratch(self) -> bool:
        """Whether the backbone starts from random weights, and knows nothing that could be kept."""
        return self.backbone in SCRATCH

    @model_validator(mode="after")
    def _fit(self) -> TrainConfig:
        levels = load_scheme(self.scheme).levels(self)
        room = self.max_query_tokens + levels + 2  # two markers
        if self.max_tokens < room:
            raise ValueError(f"max_tokens {self.max_tokens} has no room for one search; at least {room}")
        if self.item_embeddings == "alphafuse" and self.scheme != "semantic":
            raise ValueError(
                f"item_embeddings 'alphafuse' is for semantic identifiers; {self.scheme} ones have no use for it"
            )
        if self.relative_rate and self.method in ("lora", "lora-moe"):
            raise ValueError(
                f"relative_rate is not for {self.method!r}, whose adapters start at zero; "
                "turn it off, and give a learning_rate"
            )
        return self

    @classmethod
    def load(cls, path: Path | None, overrides: dict[str, Any]) -> TrainConfig:
        """YAML file or recipe name, then flags. Raises `ConfigError` naming the setting."""
        settings: dict[str, Any] = {}
        if path is not None:
            recipe = RECIPES / f"{path}.yaml"
            if not path.exists() and recipe.exists():
                path = recipe
            try:
                settings = yaml.safe_load(path.read_text("utf-8")) or {}
            except (OSError, yaml.YAMLError) as error:
                known = ", ".join(sorted(r.stem for r in RECIPES.glob("*.yaml")))
                raise ConfigError(f"{path} cannot be read: {error}. Recipes: {known}") from error
            if not isinstance(settings, dict):
                raise ConfigError(f"{path} must hold settings as 'name: value' lines")
        try:
            return cls.model_validate(settings | overrides)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()
            )
            raise ConfigError(f"settings cannot be used: {problems}") from error
