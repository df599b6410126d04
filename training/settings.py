"""Settings of a run: pydantic models that are checked, recorded in the run folder and compared on resume.

A setting in a group is named by its path with a dot, `gems.rank_share`, in YAML, flags, messages and tables alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from index.records import check_tree

MOST = 10**9  # of any count: larger ones are slips, and some would not fit the memory of any machine
MOST_THREADS = 1024
MOST_BEAMS = 10_000
SEEDS = 2**32 - 1  # the largest that every random generator takes

DeviceName = Literal["auto", "cpu", "cuda"]  # 'auto': a GPU if there is one
Clock = Literal["wall", "cpu"]
CLOCK_HELP = (
    "clock of the minutes: 'wall', or 'cpu', the processor time of the process divided by its threads, which other "
    "programs on the machine do not use up"
)

MOST_GROUPS = 8  # within each other
MOST_VALUES = 100_000  # in a file of settings; references in YAML can make few lines many


class SettingsGroup(BaseModel):
    """Base of every settings model: unknown names and endless numbers are refused, and values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    # pairs of settings of which only one is used: a later value of one replaces an earlier value of the other
    alternatives: ClassVar[tuple[tuple[str, str], ...]] = ()

    @field_validator("*")
    @classmethod
    def _no_slip(cls, value: Any, info: ValidationInfo) -> Any:
        most = SEEDS if info.field_name == "seed" else MOST_THREADS if info.field_name == "threads" else MOST
        if isinstance(value, int) and value > most:
            raise ValueError(f"at most {most}")
        return value


class RunSettings(SettingsGroup):
    """Base of the settings of a training and of a baseline."""

    @classmethod
    def renamed(cls, settings: Mapping[str, Any]) -> list[str]:
        """Return a sentence for every name of an older version among the settings, with its new name."""
        return []

    def save(self, path: Path) -> None:
        """Write the settings as YAML."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), "utf-8")


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text; None for an empty one.

    Raises `ValueError` in one line for what is not YAML, and for values that are nested too deeply, in a circle, or too
    many.
    """
    try:
        value = yaml.safe_load(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # wrong tags and dates raise whatever they lead to
        raise ValueError(" ".join(f"it is not YAML: {error}".split())) from error
    check_tree(value, MOST_VALUES)
    return value


def read_yaml(path: Path) -> Any:
    """Return the value in a YAML file. Raises what `parse_yaml` raises, and `OSError` if it cannot be read."""
    return parse_yaml(path.read_text("utf-8"))


def split(names: str) -> tuple[str, ...]:
    """Return the non-empty parts of a comma-separated setting."""
    return tuple(part.strip() for part in names.split(",") if part.strip())


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without groups: `{"gems": {"rank": 4}}` becomes `{"gems.rank": 4}`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{inner}": each for inner, each in flat(value).items()}
        else:
            found[name] = value
    return found


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in groups: `{"gems.rank": 4}` becomes `{"gems": {"rank": 4}}`.

    Groups and dotted names may be mixed. Raises `ValueError` if a setting is given twice, or lies in too many groups.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        group, dot, inner = str(name).partition(".")
        if inner.count(".") > MOST_GROUPS:
            raise ValueError(f"{str(name)[:60]}… is no setting")
        if dot:
            value = nested({inner: value})
        elif isinstance(value, Mapping):
            value = nested(value)
        else:
            group = name
        if group not in found:
            found[group] = value
            continue
        if not isinstance(found[group], dict) or not isinstance(value, dict):
            raise ValueError(f"{name} is given twice")
        twice = flat(found[group]).keys() & flat(value).keys()
        if twice:
            raise ValueError(f"{group}.{min(twice)} is given twice")
        found[group] = merged(found[group], value)
    return found


def merged(
    settings: Mapping[str, Any], changes: Mapping[str, Any], model: type[SettingsGroup] | None = None
) -> dict[str, Any]:
    """Return the settings with changes, group by group.

    settings, changes: in groups, without dotted names.
    model: model of the settings. A change of one of its `alternatives` drops the other.
    """
    found = dict(settings)
    for one, other in model.alternatives if model is not None else ():
        for changed, dropped in ((one, other), (other, one)):
            if changes.get(changed) is not None and dropped not in changes:
                found.pop(dropped, None)
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(found.get(name), Mapping):
            value = merged(found[name], value, group_of(model, name))
        found[name] = value
    return found


def group_of(model: type[SettingsGroup] | None, name: str) -> type[SettingsGroup] | None:
    """Return the model of a group; None for a setting without one."""
    field = None if model is None else model.model_fields.get(name)
    kind = None if field is None else field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, SettingsGroup) else None
