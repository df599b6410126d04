"""Settings of a training that goes on from a bundle: what the bundle fixes, what it records, and a low rate.

A bundle records the settings that it was trained with. A renewal starts from them. A recipe or a file on top of them
describes a training from nothing, so that the rate and the length of both are shortened; flags say what this run does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from index.bundle.bundle import Bundle
from index.identifiers.identifiers import SPELLED
from index.records import Record
from training.config import ConfigError, TrainConfig
from training.config.config import SCRATCH
from training.config.model_groups import AUTO
from training.settings import flat, nested

RATE: Final = 0.2  # of the learning rate of a training from nothing
LENGTH: Final = 0.15  # of its epochs

RECORDED = "settings"  # field of `BundleInfo.training`
# settings of a machine, or that name files of one
NOT_RECORDED = (
    "threads", "device", "run", "backbone.shard", "backbone.precision", "identifiers.encoder",
    "identifiers.vectors", "knowledge.basis", "knowledge.histories",
)  # fmt: skip
FIXED = (
    "backbone",
    "identifiers",
    "codes",
    "sequence.max_tokens",
    "sequence.max_events",
    "sequence.max_query_tokens",
)
# the encoder is known by its files; the others are of the training alone
NOT_FIXED = (
    "backbone.activation_checkpointing", "backbone.shard", "backbone.precision", "identifiers.encoder",
    "identifiers.vectors", "identifiers.text_part",
)  # fmt: skip
# names in the `config.json` of different families
SHAPE = {
    "backbone.hidden": ("hidden_size", "d_model"),
    "backbone.layers": ("num_hidden_layers", "num_layers"),
    "backbone.heads": ("num_attention_heads", "num_heads"),
    "backbone.dropout": ("hidden_dropout", "dropout_rate"),
}


def recorded(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a bundle records, by their dotted names, JSON-ready."""
    settings = flat(config.model_dump(mode="json"))
    return {
        name: str(value) if isinstance(value, float) and math.isinf(value) else value
        for name, value in settings.items()
        if not _among(name, NOT_RECORDED)
    }


def renewed_settings(
    bundle: Bundle, source: str | Path | None, overrides: Mapping[str, Any], recipe: str | None = None
) -> TrainConfig:
    """Return the settings of a training that goes on from a bundle.

    source, recipe: see `TrainConfig.load`; None for the recorded settings alone.
    overrides: in groups or by dotted names. Where they give neither learning rate nor epochs, those are `RATE` and
        `LENGTH` of the others'.
    Raises `ConfigError` that names the setting.
    """
    known = nested({**_recorded(bundle), **fixed(bundle)})
    given = (TrainConfig.recipe(recipe), TrainConfig.read(source))
    where = "" if source is None else f"{source}: "
    whole = TrainConfig.combined(known, *given, overrides, source=where).optimiser
    slow = {"learning_rate": RATE * whole.learning_rate, "epochs": LENGTH * whole.epochs}
    if whole.minutes is not None:
        slow["minutes"] = LENGTH * whole.minutes
    return TrainConfig.combined(known, *given, {"optimiser": slow}, overrides, source=where)


def fixed(bundle: Bundle) -> dict[str, Any]:
    """Return the settings that a bundle fixes, as far as it tells them, by their dotted names."""
    info = bundle.info
    found: dict[str, Any] = {"codes.learner": None}  # of a bundle from before there was one
    found |= {name: value for name, value in _recorded(bundle).items() if _is_fixed(name)}
    found |= {
        "identifiers.scheme": info.scheme,
        "identifiers.normalisation": info.normalisation,
        "sequence.max_tokens": info.max_tokens,
        "sequence.max_events": info.max_events,
        "sequence.max_query_tokens": info.max_query_tokens,
    }
    if info.item_embeddings in ("alphafuse", "bi-encoder"):
        found["identifiers.embeddings"] = info.item_embeddings
    if info.item_encoder:
        found["identifiers.encoder"] = info.item_encoder
    if info.scheme == SPELLED:
        found["identifiers.spelling"] = len(info.codebook_sizes)
    elif len(info.codebook_sizes) > 1 and "identifiers.codebooks" not in found:
        found["identifiers.codebooks"] = list(info.codebook_sizes[:-1])
    name = info.training.get("backbone")
    if isinstance(name, str):
        found["backbone.name"] = name
    if name in SCRATCH:
        settings = Record.read(bundle.path / "config.json").fields
        for setting, names in SHAPE.items():
            for each in names:
                if each in settings:
                    found[setting] = settings[each]
    return found


def check_fixed(bundle: Bundle, config: TrainConfig) -> None:
    """Raise `ConfigError` if settings contradict what the bundle fixes."""
    now = flat(config.model_dump(mode="json"))
    wrong = [
        f"{name} is {_shown(now[name])}, and {_shown(value)} in the bundle"
        for name, value in fixed(bundle).items()
        if _is_fixed(name) and not _agree(name, now[name], value)
    ]
    if wrong:
        raise ConfigError(
            f"the settings do not fit {bundle.path}, which the training is to go on from: {'; '.join(wrong)}. Leave "
            "them out (a recipe, too, must be that of the bundle), or train from nothing without --from"
        )


def _agree(name: str, now: Any, value: Any) -> bool:
    if name == "identifiers.scheme" and now == AUTO:
        return True
    if name == "backbone.layers" and now is None:  # all, or the default of a model from scratch
        return True
    return str(now) == str(value) if isinstance(value, str) else bool(now == value)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_fixed(name: str) -> bool:
    return _among(name, FIXED) and name not in NOT_FIXED


def _among(name: str, names: tuple[str, ...]) -> bool:
    return name in names or name.split(".")[0] in names


def _recorded(bundle: Bundle) -> dict[str, Any]:
    """Return the settings that the bundle was trained with; none for one of an older version."""
    found = bundle.info.training.get(RECORDED, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"{bundle.path / 'bundle.json'}: training.{RECORDED} must hold names and values")
    return flat(found)
