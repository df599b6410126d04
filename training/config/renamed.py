"""Old names of settings, from the time when they lay in one list: refused with their new names, or translated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.settings import SettingsGroup, flat

RENAMED = {
    "backbone": "backbone.name",
    "layers": "backbone.layers",
    "hidden": "backbone.hidden",
    "heads": "backbone.heads",
    "dropout": "backbone.dropout",
    "text_vocabulary": "backbone.text_vocabulary",
    "scheme": "identifiers.scheme",
    "codebooks": "identifiers.codebooks",
    "item_embeddings": "identifiers.embeddings",
    "item_encoder": "identifiers.encoder",
    "item_vectors": "identifiers.vectors",
    "fused_hidden": "identifiers.fused_hidden",
    "fused_epochs": "identifiers.fused_epochs",
    "quantiser": "identifiers.quantiser",
    "code_capacity": "identifiers.code_capacity",
    "spelling": "identifiers.spelling",
    "normalisation": "identifiers.normalisation",
    "max_events": "sequence.max_events",
    "max_tokens": "sequence.max_tokens",
    "max_query_tokens": "sequence.max_query_tokens",
    "targets": "sequence.targets",
    "title_queries": "sequence.title_queries",
    "query_dropout": "sequence.query_dropout",
    "learning_rate": "optimiser.learning_rate",
    "relative_rate": "optimiser.relative",
    "weight_decay": "optimiser.weight_decay",
    "warmup": "optimiser.warmup",
    "final_rate": "optimiser.final_rate",
    "clip": "optimiser.clip",
    "batch_size": "optimiser.batch_size",
    "part_tokens": "optimiser.part_tokens",
    "epochs": "optimiser.epochs",
    "minutes": "optimiser.minutes",
    "rank": "gems.rank",
    "task_rank": "gems.task_rank",
    "scale": "gems.scale",
    "rank_scaling": "gems.rank_scaling",
    "growth_limit": "gems.growth_limit",
    "refresh_every": "gems.refresh_every",
    "stagger": "gems.stagger",
    "stale_moments": "gems.transport",
    "multi_subspace": "gems.multi_subspace",
    "deflation": "gems.deflate",
    "joint_gradients": "gems.joint",
    "gate": "gems.gate",
    "gate_temperature": "gems.temperature",
    "null_space": "knowledge.null_space",
    "knowledge": "knowledge.basis",
    "knowledge_energy": "knowledge.energy",
    "knowledge_cap": "knowledge.cap",
    "knowledge_tokens": "knowledge.tokens",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "experts": "lora.experts",
    "validate_every": "validation.every",
    "validation_cases": "validation.cases",
    "stop_on": "validation.stop_on",
    "patience": "validation.patience",
    "conflict_cases": "validation.conflict_cases",
    "checkpoint_every": "run.checkpoint_every",
    "tensorboard": "run.tensorboard",
}
RANKS = ("rank", "task_rank")  # were counts above 1 and shares up to 1
NEGATED = "stale_moments"


def old_names(settings: Mapping[str, Any]) -> list[str]:
    """Return the names among the settings that are old. `backbone` and `knowledge` are groups today."""
    return [name for name, value in settings.items() if name in RENAMED and not _is_group(name, value)]


def new_name(name: str, prefix: str = "") -> str:
    """Return a sentence with the new name of an old setting, each behind a prefix."""
    new = prefix + RENAMED[name]
    if name in RANKS:
        return f"{prefix}{name} is now {new} (a count of directions) or {new}_share (a share of the smaller size)"
    return f"{prefix}{name} is now {new}" + (" (the opposite)" if name == NEGATED else "")


def new_flag(flag: str) -> str | None:
    """Return a sentence with the new name of an old flag of `gems train`; None for any other flag."""
    if not flag.startswith("--"):
        return None
    off = flag.startswith("--no-")
    name = flag.removeprefix("--").removeprefix("no-" if off else "").replace("-", "_")
    if name not in RENAMED:
        return None
    if name in RANKS:
        return new_name(name, "--").replace("_", "-")
    group, _, inner = RENAMED[name].replace("_", "-").partition(".")
    return f"{flag} is now --{group}.{'no-' if off != (name == NEGATED) else ''}{inner}"


def modern(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings by their dotted names of today, so that runs of older versions can be read."""
    if "baseline" in settings:  # a run of `gems baseline`, whose settings have no groups
        return dict(settings)
    old = set(old_names(settings))
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in old:
            found |= flat({name: value})
        elif name in RANKS:
            share = isinstance(value, int | float) and value <= 1
            found[RENAMED[name]] = None if share else value
            found[f"{RENAMED[name]}_share"] = value if share else None
        else:
            found[RENAMED[name]] = not value if name == NEGATED else value
    return found


def _is_group(name: str, value: Any) -> bool:
    return name in ("backbone", "knowledge") and isinstance(value, Mapping | SettingsGroup)
