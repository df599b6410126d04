"""Groups of training settings. The description of each field is its help text.

The names in `gems`, and `energy` and `cap` in `knowledge`, are those of the parameters of `gems.GEMS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from index.extensions import one_of
from index.identifiers.registry import QUANTISERS, SCHEMES, quantiser_names, scheme_names
from index.sequence.events import Task
from training.config.extra_task import ExtraTask, check_stages
from training.settings import SettingsGroup, parse_yaml

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


class SequenceSettings(SettingsGroup):
    """Token sequences that are made from the histories."""

    max_events: int = Field(
        50,
        ge=1,
        le=1_000_000,
        description="events of a sequence, including the one to be predicted (1: no history)",
    )
    max_tokens: int = Field(512, ge=48, le=2**20, description="tokens of a sequence or prompt")
    max_query_tokens: int = Field(32, ge=1, description="longer queries are cut")
    targets: int = Field(
        4,
        ge=1,
        description="encoder-decoder: items of a logged sequence to be predicted, drawn again each epoch",
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
    event_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of logged events that a training sequence leaves out, drawn again each epoch",
    )
    word_queries: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of logged recommendations trained as searches for words of the item",
    )
    tasks: Literal["both", "search", "recommendation"] = Field(
        "both",
        description="tasks that the model learns to answer; histories hold the events of both ('both': one model)",
    )
    log_after: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the training after which the logged sequences are trained; before, extra_tasks alone",
    )
    extra_tasks: tuple[ExtraTask, ...] = Field(
        (), description="further tasks, such as {read: identifier, write: title, share: 0.1}; comma-separated"
    )

    @property
    def trained_tasks(self) -> tuple[Task, ...]:
        return tuple(Task) if self.tasks == "both" else (Task(self.tasks),)

    @property
    def last_stage(self) -> float:
        """The share of the training after which no other task begins: it does not stop early before."""
        return max([self.log_after, *(task.after for task in self.extra_tasks)])

    @property
    def tasks_beside_log(self) -> tuple[ExtraTask, ...]:
        """The extra tasks, among them `title_queries`, which is a short name for one."""
        if not self.title_queries or Task.SEARCH not in self.trained_tasks:
            return self.extra_tasks
        return (ExtraTask(read="title", write="identifier", share=self.title_queries), *self.extra_tasks)

    @field_validator("extra_tasks", mode="before")
    @classmethod
    def _parsed(cls, tasks: Any) -> Any:
        """Read the form of a flag: YAML mappings, comma-separated."""
        return parse_yaml(f"[{tasks}]") if isinstance(tasks, str) else tasks

    @model_validator(mode="after")
    def _trainable(self) -> SequenceSettings:
        for k, task in enumerate(self.extra_tasks):
            if task.helped is not None and task.helped not in self.trained_tasks:
                raise ValueError(
                    f"extra_tasks.{k} helps {task.helped.value}, and sequence.tasks trains {self.tasks} alone: give it "
                    f"helps: {self.tasks}, or train both"
                )
        check_stages(self.tasks_beside_log, self.log_after)
        return self


class OptimiserSettings(SettingsGroup):
    """Learning rate, batches and length of the training, for every method."""

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate ('t5-tiger': 0.01)")
    relative: bool = Field(
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
    other_weights: Literal["frozen", "trained", "subspace"] | None = Field(
        None,
        description="token table, norms, biases, experts of a pretrained backbone: 'frozen', 'trained', or 'subspace', "
        "the table in subspaces ('gems', 'subspace'); default: 'trained' by 'full' and methods of the tasks' "
        "gradients, else 'frozen'",
    )
    epochs: float = Field(10, gt=0, description="passes over the logged sequences")
    minutes: float | None = Field(
        None, gt=0, description="length of training in minutes: the schedule ends then, if not before"
    )
    logit_temperature: float = Field(
        1.0,
        gt=0,
        description="logits of codes are divided by it in the training loss (LETTER's ranking loss: below 1)",
    )


class GemsSettings(SettingsGroup):
    """Subspaces of the method 'gems'; 'subspace' uses the shared one."""

    alternatives: ClassVar[tuple[tuple[str, str], ...]] = (
        ("rank", "rank_share"),
        ("task_rank", "task_rank_share"),
    )

    rank: int | None = Field(
        None, ge=1, description="shared subspace: number of directions (in place of rank_share)"
    )
    rank_share: float | None = Field(
        0.25, gt=0, le=1, description="shared subspace: directions as a share of a layer's smaller size"
    )
    task_rank: int | None = Field(
        None,
        ge=1,
        description="subspace of each task: number of directions (default: half of the shared one)",
    )
    task_rank_share: float | None = Field(
        None, gt=0, le=1, description="subspace of each task: directions as a share of a layer's smaller size"
    )
    output_bases: bool = Field(
        False,
        description="layers with more outputs than inputs: bases of outputs (less state; no null space)",
    )
    share_bases: bool = Field(
        False, description="one basis for layers that read the same input (queries, keys, values): less state"
    )
    scale: float = Field(1.0, gt=0, description="factor on the length of subspace updates")
    rank_scaling: bool = Field(
        False, description="lengthen a subspace update by sqrt(size / rank), to the length of Adam's"
    )
    growth_limit: float | None = Field(
        None, gt=1, description="a subspace update grows by at most this factor a step"
    )
    refresh_every: int = Field(200, ge=1, description="steps between refreshes of a layer's subspaces")
    stagger: int = Field(10, ge=1, description="groups of layers that take turns to refresh")
    transport: bool = Field(True, description="move Adam's moments to the new bases at a refresh")
    multi_subspace: bool = Field(True, description="a subspace for each task in addition to the shared one")
    deflate: bool = Field(True, description="task subspaces complement the shared one")
    joint: bool = Field(
        True, description="gradients of each task at refreshes only, the joint one in between: cheaper"
    )
    gate: Literal["uniform", "prior", "hypergradient"] = Field(
        "uniform", description="weighting of the tasks' updates"
    )
    temperature: float = Field(1.5, gt=0, description="softmax temperature of the gate")

    @model_validator(mode="before")
    @classmethod
    def _count_or_share(cls, settings: Any) -> Any:
        """Drop the default share if a count is given."""
        if isinstance(settings, dict) and settings.get("rank") is not None and "rank_share" not in settings:
            return settings | {"rank_share": None}
        return settings

    @field_validator("rank", "task_rank", mode="before")
    @classmethod
    def _whole(cls, count: Any, info: ValidationInfo) -> Any:
        if isinstance(count, float):
            raise ValueError(
                f"{count} is no count of directions; write {info.field_name}_share for a share of the smaller size"
            )
        return count

    @model_validator(mode="after")
    def _one_of_each(self) -> GemsSettings:
        for count, share in self.alternatives:
            if getattr(self, count) is not None and getattr(self, share) is not None:
                raise ValueError(f"give {count} or {share}, not both")
        if self.share_bases and self.output_bases:
            raise ValueError("layers that read the same input share bases of inputs: drop output_bases")
        if self.rank is None and self.rank_share is None:
            raise ValueError("give rank (a count of directions) or rank_share (a share of the smaller size)")
        return self


class KnowledgeSettings(SettingsGroup):
    """Knowledge that 'gems' leaves alone: of a pretrained backbone, or of the model that a training goes on from."""

    null_space: bool = Field(
        True, description="leave the directions of known inputs alone (from scratch there are none)"
    )
    source: Literal["text", "histories"] = Field(
        "text",
        description="known inputs: those on general text, or (with --from) those of the last model on old histories",
    )
    histories: Path | None = Field(
        None,
        description="'histories': data set with old histories (default: those of the data set that is trained)",
    )
    basis: Path | None = Field(
        None, description="file with a knowledge basis of this backbone (default: collect one)"
    )
    energy: float = Field(0.9, gt=0, le=1, description="share of the known inputs' energy that is left alone")
    cap: float = Field(
        0.5, gt=0, lt=1, description="largest share of a layer's input directions that is left alone"
    )
    softness: float | None = Field(
        None,
        gt=0,
        description="soft null space: updates shrink by (1 + energy / (softness * mean energy))^-1/2",
    )
    tokens: int = Field(65536, ge=256, description="tokens of text or histories for the knowledge basis")


class LoraSettings(SettingsGroup):
    """Adapters of the methods 'lora' and 'lora-moe'."""

    rank: int = Field(32, ge=1, le=16384, description="rank of an adapter")
    alpha: float = Field(64, gt=0, description="adapters are scaled by alpha / rank")
    experts: int = Field(4, ge=1, le=1024, description="'lora-moe': experts of a layer")
    layers: Literal["blocks", "feed-forward"] = Field(
        "blocks", description="every linear layer of the blocks, or those of feed-forward parts (as LoRAMoE)"
    )
    balance: float = Field(
        0.0,
        ge=0,
        description="'lora-moe': weight of the localised balance loss, which divides the experts by kind",
    )
    delta: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="'lora-moe': how far the balance loss moves a sample to the half of its kind",
    )

    @model_validator(mode="after")
    def _halves(self) -> LoraSettings:
        if self.balance and self.experts % 2:
            raise ValueError(
                f"lora.balance needs two halves of experts, and lora.experts is {self.experts}: even it"
            )
        return self


class ValidationSettings(SettingsGroup):
    """Validation during training, and early stopping."""

    every: float = Field(1.0, gt=0, description="epochs between validations")
    cases: int = Field(1000, ge=1, description="validation cases, drawn once")
    stop_on: Literal["loss", "ndcg@10"] = Field(
        "loss", description="figure that early stopping watches; ndcg@10 ranks through the serving engine"
    )
    patience: int = Field(3, ge=1, description="validations without improvement before training stops")
    conflict_cases: int = Field(
        32, ge=0, description="validation cases on which the tasks' conflict is measured (0: not at all)"
    )


class RunFolderSettings(SettingsGroup):
    """Files that are written during training."""

    checkpoint_every: float = Field(5.0, gt=0, description="minutes between checkpoints")
    tensorboard: bool = Field(False, description="mirror the figures to RUN/tensorboard")
