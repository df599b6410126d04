"""Groups of training settings for every model and method. Field descriptions are help texts."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from index.sequence.events import Task
from training.config.extra_task import ExtraTask, check_stages
from training.settings import CLOCK_HELP, Clock, SettingsGroup, parse_yaml


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
    clock: Clock = Field("wall", description=CLOCK_HELP)
    logit_temperature: float = Field(
        1.0,
        gt=0,
        description="logits of codes are divided by it in the training loss (LETTER's ranking loss: below 1)",
    )


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
