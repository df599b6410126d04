"""The records of a run folder, with types, and independent of torch."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from index.contents import contents_of
from training.config import modern
from training.errors import UserError
from training.settings import read_yaml

Points = list[tuple[float, float]]  # (step, value)
Group = TypeVar("Group", bound=Hashable)
SUBSPACE_FIGURES = ("energy", "overlap", "leak")


class ReportError(UserError):
    """The run folder cannot be reported on."""


class WeightPlace(NamedTuple):
    """The position of a weight, such as `q_proj` of layer 3. A weight outside the layers has no layer."""

    kind: str
    layer: int | None

    @classmethod
    def of(cls, weight: str) -> WeightPlace:
        """Parse the name of a weight."""
        parts = weight.removesuffix(".weight").split(".")
        layer = next((int(part) for part in parts if part.isascii() and part.isdigit()), None)
        return cls(parts[-1], layer)


@dataclass(frozen=True)
class RunLog:
    """The files of a run folder. A missing file is empty; figures that are not finite numbers are left out."""

    folder: Path
    records: list[dict[str, Any]]
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    bundle: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)
    preservation: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> RunLog:
        """Read a run folder. Raises `ReportError` if there are no metrics, or if a file is damaged."""
        return cls(
            folder,
            _read_records(folder),
            modern(_read_mapping(folder / "config.yaml")),
            _read_mapping(folder / "environment.json"),
            _read_mapping(folder / "bundle" / "bundle.json"),
            _read_mapping(folder / "evaluation.json"),
            _read_mapping(folder / "preservation.json"),
        )

    @property
    def data_name(self) -> str:
        for source in (self.bundle, self.evaluation):
            name = mapping(source.get("data")).get("name")
            if name:
                return str(name)
        return Path(str(self.environment.get("data", ""))).name or "unknown data set"

    @property
    def method(self) -> str:
        return self._setting("method", "method")

    @property
    def backbone(self) -> str:
        return self._setting("backbone.name", "backbone")

    @property
    def steps(self) -> int:
        return int(self.records[-1]["step"])

    @property
    def epochs(self) -> float | None:
        return number(self.records[-1].get("epoch"))

    @property
    def seconds(self) -> float | None:
        """Seconds of training until the last step; None if unknown."""
        times = self.curve("seconds")
        return times[-1][1] if times else None

    def same_data(self, other: RunLog) -> bool:
        """Whether both runs were trained on the same data, as far as it is known."""
        ours, theirs = (log.environment.get("data_sha256") for log in (self, other))
        return ours is None or theirs is None or bool(ours == theirs)

    def curve(self, name: str, group: str | None = None) -> Points:
        """Return one figure over the steps, from the step records or from a nested group such as `validation`."""
        points = []
        for record in self.records:
            value = number((record if group is None else mapping(record.get(group))).get(name))
            if value is not None:
                points.append((float(record["step"]), value))
        return points

    def conflicts(self) -> list[tuple[int, dict[str, float]]]:
        """Return ρ of each weight at every step that measured it, from `conflict` records, else from `subspaces`."""
        measured = [(r["step"], _numbers(mapping(r.get("conflict")))) for r in self.records]
        if not any(values for _, values in measured):
            measured = [
                (r["step"], _numbers({weight: mapping(v).get("conflict") for weight, v in weights.items()}))
                for r in self.records
                if (weights := mapping(r.get("subspaces")))
            ]
        return [(int(step), values) for step, values in measured if values]

    def mean_conflict(self) -> Points:
        """Return the mean ρ of the measured weights, over the steps."""
        return [(float(step), statistics.fmean(values.values())) for step, values in self.conflicts()]

    def last_conflicts(self) -> dict[WeightPlace, float]:
        """Return ρ by position: the newest value of every weight, averaged over weights of the same position."""
        newest: dict[str, float] = {}
        for _, values in self.conflicts():
            newest |= values
        return _means_by({weight: WeightPlace.of(weight) for weight in newest}, newest)

    def subspace_means(self) -> dict[str, dict[str, float]]:
        """Return energy, overlap and leak by kind of weight: the newest value of every weight, mean over layers."""
        newest: dict[str, dict[str, float]] = {name: {} for name in SUBSPACE_FIGURES}
        for record in self.records:
            for weight, figures in mapping(record.get("subspaces")).items():
                for name in SUBSPACE_FIGURES:
                    value = number(mapping(figures).get(name))
                    if value is not None:
                        newest[name][weight] = value
        means: dict[str, dict[str, float]] = {}
        for name, values in newest.items():
            kinds = {weight: WeightPlace.of(weight).kind for weight in values}
            for kind, mean in _means_by(kinds, values).items():
                means.setdefault(kind, {})[name] = mean
        return means

    def cost(self) -> dict[str, float]:
        """Return the bytes of the newest `cost` record, by name."""
        found: dict[str, float] = {}
        for record in self.records:
            found |= _numbers(mapping(record.get("cost")))
        return found

    def seconds_per_step(self) -> float | None:
        """Return the median over the steps, so that validations between two steps do not count."""
        times = self.curve("seconds")
        lengths = [(t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in pairwise(times) if s1 > s0 and t1 >= t0]
        return statistics.median(lengths) if lengths else None

    def _setting(self, name: str, in_bundle: str) -> str:
        recorded = mapping(self.bundle.get("training"))
        return str(self.config.get(name) or recorded.get(in_bundle) or "unknown")


def number(value: object) -> float | None:
    """Return the value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None


def mapping(value: object) -> dict[str, Any]:
    """Return the value if it is a JSON object, else an empty object."""
    return value if isinstance(value, dict) else {}


def _numbers(values: Mapping[str, object]) -> dict[str, float]:
    return {name: known for name, value in values.items() if (known := number(value)) is not None}


def _means_by(groups: Mapping[str, Group], values: Mapping[str, float]) -> dict[Group, float]:
    members: dict[Group, list[float]] = {}
    for name, group in groups.items():
        members.setdefault(group, []).append(values[name])
    return {group: statistics.fmean(found) for group, found in members.items()}


def _read_records(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    except (FileNotFoundError, NotADirectoryError) as error:
        found = f"{folder} is {contents_of(folder)} that" if folder.is_dir() else folder
        raise ReportError(
            f"{found} holds no metrics.jsonl, so there is nothing to report; give the folder that 'gems train' wrote "
            "to (its --out)"
        ) from error
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error}") from error
    filled = [(row, line) for row, line in enumerate(lines, start=1) if line.strip()]
    records = []
    for place, (row, line) in enumerate(filled, start=1):
        try:
            record = json.loads(line)
            if number(record["step"]) is None:
                raise ValueError("its step is no number")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if place == len(filled):  # the last line of a killed run may be incomplete
                break
            raise ReportError(
                f"{path}, line {row}, is no record of a training ({error}); remove that line and try again"
            ) from error
        records.append(record)
    if not records:
        raise ReportError(f"{path} holds no finished step yet; wait until the training has made one")
    return sorted(records, key=lambda record: number(record["step"]) or 0.0)


def _read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = read_yaml(path) if path.suffix == ".yaml" else json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path} cannot be read ({error}); write it again, or move it away") from error
    if not isinstance(value, dict):
        raise ReportError(f"{path} must hold names and values; write it again, or move it away")
    return value
