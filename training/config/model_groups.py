"""Groups of training settings that make the model: backbone and identifiers. Field descriptions are help texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from index.extensions import one_of
from index.identifiers.registry import QUANTISERS, SCHEMES, quantiser_names, scheme_names
from training.settings import SettingsGroup

AUTO = "auto"


def _same(given: Any, default: Any) -> bool:
    """Whether a value, perhaps in the form of a flag, is a default. What is no value at all is refused later."""
    if isinstance(default, tuple):
        parts = given.split(",") if isinstance(given, str) else given
        return isinstance(parts, list | tuple) and [str(part).strip() for part in parts] == [
            *map(str, default)
        ]
    if isinstance(default, float):
        try:
            return float(given) == default
        except (TypeError, ValueError):
            return False
    return bool(given == default)


class BackboneSettings(SettingsGroup):
    """Language model that is trained."""

    name: str = Field(
        "smollm2-135m",
        description="'smollm2-135m', 'scratch', 't5-tiger', or a Hugging Face name or folder",
    )
    layers: int | None = Field(
        None, ge=1, le=1000, description="keep the first N layers (from scratch: build N; 't5-tiger': 4)"
    )
    hidden: int = Field(128, ge=8, le=16384, description="from scratch: width of the model")
    heads: int = Field(4, ge=1, le=1024, description="from scratch: attention heads ('t5-tiger': 6)")
    dropout: float = Field(
        0.3, ge=0, lt=1, description="from scratch: dropout on embeddings and block outputs ('t5-tiger': 0.1)"
    )
    text_vocabulary: int = Field(
        8000, ge=300, le=1_000_000, description="from scratch: size of the BPE trained on the catalogue"
    )
    activation_checkpointing: bool = Field(
        False,
        description="keep the inputs of blocks only, and compute them again in backward passes: less memory",
    )
    shard: bool = Field(
        False,
        description="under torchrun, each process holds a part of the rows of every block's weights (FSDP2)",
    )
    precision: Literal["auto", "float32", "autocast", "bfloat16"] = Field(
        "auto",
        description="'float32', 'autocast' (products in bfloat16), 'bfloat16' (weights of layers, too), or 'auto': "
        "autocast on a GPU, else float32",
    )


class IdentifierSettings(SettingsGroup):
    """Identifiers of the items, and the vectors that they are made from."""

    # settings that only semantic identifiers have: who changes one means them
    of_codes: ClassVar[tuple[str, ...]] = ("codebooks", "embeddings", "quantiser", "code_capacity")

    scheme: str = Field(
        AUTO,
        description="identifier scheme ('auto': 'atomic' up to 50,000 items, else 'semantic'; 'gensar': two "
        "identifiers an item, by task)",
        json_schema_extra={"choices_of": SCHEMES},
    )
    codebooks: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = Field(
        (256, 256),
        min_length=1,
        description="'semantic': codes per level, comma-separated; a level that separates collisions is added; "
        "'gensar': the first half is shared",
    )
    embeddings: Literal["text", "alphafuse", "bi-encoder"] = Field(
        "text",
        description="'semantic': vectors that are coded: of texts, fused with people's choices (AlphaFuse), or of the "
        "encoder tuned on both tasks (as in Sem-BSR)",
    )
    encoder: str = Field(
        "minilm",
        description="text encoder of item vectors: 'minilm', or a sentence-transformers or Hugging Face "
        "encoder by folder or name",
    )
    vectors: Path | None = Field(
        None, description="file with item vectors (.parquet, .npz, .npy) in place of the encoder's"
    )
    fused_hidden: int = Field(
        128,
        ge=4,
        le=16384,
        multiple_of=2,
        description="'alphafuse': width of fused vectors; half is meaning, half is learned; 'letter', 'gensar': of "
        "behaviour",
    )
    fused_epochs: int = Field(
        40,
        ge=1,
        description="'alphafuse', 'letter', 'gensar': passes over the histories at most; it stops early",
    )
    tuned_steps: int = Field(
        300,
        ge=3,
        le=1_000_000,
        description="'bi-encoder': steps in which the encoder is tuned, in three rounds, two with mined negatives",
    )
    quantiser: str = Field(
        "kmeans",
        description="'semantic': method that makes the codes of item vectors; 'letter' also follows people's choices",
        json_schema_extra={"choices_of": QUANTISERS},
    )
    code_capacity: float = Field(
        2.0,
        ge=1,
        allow_inf_nan=True,
        description="'semantic': largest number of items of a code, as a multiple of the mean (approximate)",
    )
    text_part: bool = Field(
        True,
        description="'atomic': the row of an item's token is the sum of one of its own and a linear map of its vector",
    )
    spelling: int = Field(12, ge=4, le=1000, description="'text': tokens of an identifier at most")
    normalisation: Literal["level", "vocabulary"] = Field(
        "level", description="softmax over the level's codebook, or over the whole vocabulary"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_codes(cls, settings: Any) -> Any:
        """Choose semantic identifiers if settings of codes are not the defaults, and no scheme is given."""
        if not isinstance(settings, dict) or settings.get("scheme", AUTO) != AUTO:
            return settings
        for name in cls.of_codes:
            given, default = settings.get(name), cls.model_fields[name].default
            if given is not None and not _same(given, default):
                return settings | {"scheme": "semantic"}
        return settings

    @field_validator("scheme")
    @classmethod
    def _known_scheme(cls, scheme: str) -> str:
        return one_of(scheme, scheme_names())

    @field_validator("quantiser")
    @classmethod
    def _known_quantiser(cls, quantiser: str) -> str:
        return one_of(quantiser, quantiser_names())

    @field_validator("codebooks", mode="before")
    @classmethod
    def _split(cls, codebooks: Any) -> Any:
        """Split the comma-separated form of a flag."""
        return codebooks.split(",") if isinstance(codebooks, str) else codebooks


class CodeSettings(SettingsGroup):
    """Codes that are learned together with the language model, in a stage before the training with fixed codes."""

    learner: Literal["diger", "genret"] | None = Field(
        None,
        description="'diger': codes that the loss of recommendations reaches; 'genret': by a discrete autoencoder of "
        "texts inside a T5; default: codes stay as the quantiser made them",
    )
    share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the training's steps (or minutes) in which the codes are learned; the rest is with fixed "
        "codes",
    )
    rate: float = Field(1e-5, gt=0, description="'diger': learning rate of the codes")
    temperature: float = Field(2.0, gt=0, description="'diger': softmax temperature of the choice of a code")
    schedule: Literal["use", "sigma"] = Field(
        "use",
        description="'diger': the noise of choices falls with the steps, and only popular codes have it ('use'), or "
        "it is learned ('sigma')",
    )


class SchemeSettings(IdentifierSettings):
    """Settings that an identifier scheme may read: the group `identifiers`, and the seed of the run."""

    seed: int = 0
