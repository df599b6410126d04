"""Tasks that a training has besides its logged sequences, as data: what is read, what is written, and when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from index.sequence.events import Task
from training.settings import SettingsGroup

# what may be written after what is read
WRITES: dict[str, tuple[str, ...]] = {
    "title": ("identifier", "query"),
    "text": ("identifier", "query"),
    "words": ("identifier",),
    "query": ("identifier",),
    "identifier": ("title", "query"),
    "history": ("identifier", "query"),
}


class ExtraTask(SettingsGroup):
    """One task: `{read: title, write: identifier, share: 0.1}`."""

    read: Literal["title", "text", "words", "query", "identifier", "history"] = Field(
        description="title or whole text of an item, a few words of it, a logged query, an identifier, or a history"
    )
    write: Literal["identifier", "title", "query"] = Field(
        description="identifier or title of the item, or query"
    )
    share: float = Field(
        gt=0, le=10, description="samples, as a share of the items to be predicted in the log"
    )
    helps: Task | None = Field(
        None,
        description="task whose loss the samples count to (default: search; of an item in a history, its own)",
    )
    events: Literal["both", "search", "recommendation"] = Field(
        "both", description="'history': the events of it that are read"
    )
    after: float = Field(0.0, ge=0, lt=1, description="share of the training after which the task begins")
    until: float = Field(1.0, gt=0, le=1, description="share of the training at which it ends")

    @model_validator(mode="after")
    def _possible(self) -> ExtraTask:
        if self.write not in WRITES[self.read]:
            raise ValueError(
                f"after a {self.read} no {self.write} can be written; one of {', '.join(WRITES[self.read])} can"
            )
        if self.after >= self.until:
            raise ValueError(f"it ends (until {self.until}) before it begins (after {self.after})")
        if self.events != "both" and self.read != "history":
            raise ValueError(f"'events' is for histories, not for a {self.read}")
        return self

    @property
    def helped(self) -> Task | None:
        """The task whose loss the samples count to; None for that of each item."""
        if self.helps is None and (self.read, self.write) != ("history", "identifier"):
            return Task.SEARCH
        return self.helps

    @property
    def asks(self) -> bool:
        """Whether logged queries are needed."""
        return "query" in (self.read, self.write)

    @property
    def of_log(self) -> bool:
        """Whether the samples are made of what people did, and not of the catalogue alone."""
        return self.asks or self.read == "history"

    def active(self, done: float) -> bool:
        """Whether the task is trained. done: share of the training that lies behind, in [0, 1]."""
        return self.after <= done and (done < self.until or self.until == 1)


def check_stages(tasks: Sequence[ExtraTask], log_after: float) -> None:
    """Raise `ValueError` if nothing is trained in a part of the training before the logged sequences begin."""
    begins = {0.0, *(task.until for task in tasks)}
    for moment in sorted(begin for begin in begins if begin < log_after):
        if not any(task.active(moment) for task in tasks):
            raise ValueError(
                f"nothing is trained from {moment} of the training on: the log begins at log_after {log_after}; let a "
                "task of extra_tasks last until then, or lower log_after"
            )
