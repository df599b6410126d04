"""Ranks of a system, case by case, on disk, so that a comparison needs no model and no second ranking.

The format is one `.npz` file without pickle: `about` (JSON text: system, seed, data, protocol, cost), and for each task
`<task>.users` (strings), `<task>.targets`, `<task>.history` (events before the target) and `<task>.ranks`, int64
[cases].
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.contents import contents_of
from index.records import parse_json
from index.sequence.events import Task
from training.data.splits import Case
from training.errors import EvaluationError
from training.inputs import mistaken
from training.outputs import write_output

RANKS_FILE = "ranks.npz"
COLUMNS = ("users", "targets", "history", "ranks")


@dataclass(frozen=True, eq=False)
class TaskRanks:
    """Ranks of one task.

    users: user ids, str [cases].
    targets: catalogue rows, int64 [cases].
    history: number of events before the target, int64 [cases].
    ranks: 1-based, 0 if the target was not ranked, int64 [cases].
    """

    users: NDArray[np.str_]
    targets: NDArray[np.int64]
    history: NDArray[np.int64]
    ranks: NDArray[np.int64]

    @classmethod
    def of(cls, cases: Sequence[Case], ranks: NDArray[np.int64]) -> TaskRanks:
        """Return the ranks of these cases, int64 [cases]."""
        return cls(
            np.array([case.user_id for case in cases]),
            np.array([case.target for case in cases], np.int64),
            np.array([len(case.history) for case in cases], np.int64),
            ranks,
        )


@dataclass(frozen=True, eq=False)
class CaseRanks:
    """Ranks of a system on all tasks.

    system: name of the system; runs with the same name and different seeds are the same system.
    seed: seed of the run.
    data: fingerprint of the data set.
    protocol: description of cases and candidates. Ranks of different protocols are not comparable.
    cost: figures of the training, such as seconds.
    """

    system: str
    seed: int
    data: str
    protocol: Mapping[str, Any]
    tasks: Mapping[Task, TaskRanks]
    cost: Mapping[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file as a whole. Raises `OutputError`."""
        about = {
            "system": self.system, "seed": self.seed, "data": self.data, "protocol": dict(self.protocol),
            "cost": dict(self.cost),
        }  # fmt: skip
        arrays = {
            f"{task.value}.{column}": getattr(ranks, column)
            for task, ranks in self.tasks.items()
            for column in COLUMNS
        }

        def write(draft: Path) -> None:
            with draft.open("wb") as file:
                np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)

        write_output(path, write)

    @classmethod
    def load(cls, path: Path) -> CaseRanks:
        """Read a file, or the file in a run folder. Raises `EvaluationError`."""
        file = path / RANKS_FILE if path.is_dir() else path
        hint = "'gems baseline' writes one, and 'gems evaluate --ranks FILE'"
        if path.is_dir() and not file.exists():
            raise EvaluationError(f"{path} is {contents_of(path)} without a file {RANKS_FILE}; {hint}")
        if wrong := mistaken(file, "the ranks of a system", "a zip archive"):
            raise EvaluationError(f"{wrong}; {hint}")
        try:
            with np.load(file, allow_pickle=False) as stored:
                about = parse_json(str(stored["about"]))
                tasks = {
                    task: TaskRanks(*(stored[f"{task.value}.{column}"] for column in COLUMNS))
                    for task in Task
                    if f"{task.value}.ranks" in stored
                }
            return cls(**about, tasks=tasks)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise EvaluationError(f"{file} holds no ranks of ours: {error}") from error
