"""`metrics.jsonl` of a run folder: one record a line, mirrored to TensorBoard if the settings say so."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from index.records import parse_json
from training.errors import UserError


class MetricsError(UserError):
    """The figures of a run cannot be logged as requested."""


class _Board(Protocol):
    """Part of TensorBoard's `SummaryWriter` that is used here."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class MetricsLog:
    """Log that appends records to RUN/metrics.jsonl; every line is handed to the operating system when written.

    A record has a `step`; nested dictionaries group figures. Figures that are not finite become null, because
    JSON cannot express them.
    """

    def __init__(self, run: Path, tensorboard: bool = False) -> None:
        """Open the log. Raises `MetricsError` if TensorBoard is requested and not installed."""
        path = run / "metrics.jsonl"
        if path.exists():
            _drop_torn_line(path)
        self._board = _open_board(run) if tensorboard else None
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one line, and to TensorBoard one scalar for every number, as `group/name`."""
        finite = _finite(record)
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        if self._board is not None:
            for tag, value in _scalars(finite):
                if tag != "step":
                    self._board.add_scalar(tag, value, int(record["step"]))

    def flush_to_disk(self) -> None:
        """Sync the records to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _drop_torn_line(path: Path) -> None:
    """Cut off an incomplete last line of a killed run, so that the next record starts on its own line."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _next_step(path: Path) -> int | None:
    """Return the step after the last record; None for a new run."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    try:
        return int(parse_json(lines[-1].decode())["step"]) + 1 if lines else None
    except (ValueError, TypeError, KeyError) as error:
        raise MetricsError(f"the last line of {path} is no record of a step ({error}); remove it") from error


def _open_board(run: Path) -> _Board:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MetricsError(
            "logging to TensorBoard needs its package: pip install 'gems-sr[tensorboard]'"
        ) from error
    # a resumed run repeats the steps after its checkpoint: TensorBoard must drop their first records
    board: _Board = SummaryWriter(str(run / "tensorboard"), purge_step=_next_step(run / "metrics.jsonl"))
    return board


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value
