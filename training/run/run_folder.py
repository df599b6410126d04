"""The run folder: record of settings, data and surroundings, and the check whether a run may be continued."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from index.contents import contents_of
from training.data.dataset import DataSet
from training.data.schema import package_version
from training.errors import UserError
from training.settings import RunSettings, flat


class RunError(UserError):
    """The run folder does not allow the requested run."""


def fingerprint(dataset: DataSet) -> str:
    """Return the SHA-256 of the catalogue's ids and of every interaction, in order."""
    digest = hashlib.sha256()
    for item in dataset.catalogue:
        digest.update(item.item_id.encode() + b"\x1f")
    for user in dataset.users:
        digest.update(repr((user.user_id, user.events)).encode() + b"\x1e")
    return digest.hexdigest()


def check_run(out: Path, config: RunSettings, dataset: DataSet, resume: bool) -> bool:
    """Return whether `out` holds a run that is to be continued. Nothing is written.

    resume: whether an existing run may be continued.
    Raises `RunError` for a run without `resume`, for other settings or data, for a run of an older version, and
    for a folder that is no run.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not (out / "environment.json").is_file() or not (out / "config.yaml").is_file():
        said = f"{out} is {contents_of(out)}" if out.is_dir() else f"{out} is a file"
        raise RunError(f"{said}, not a run folder; choose another --out")
    if not resume:
        raise RunError(f"{out} holds a run already; add --resume to continue it, or choose another --out")
    recorded, data = _recorded(out)
    old = config.renamed(recorded)
    if old:
        raise RunError(
            f"{out} was started by an older version, whose settings had other names ({'; '.join(old[:3])}"
            f"{'; …' if len(old) > 3 else ''}); finish it with that version, or choose another --out"
        )
    before, now = flat(recorded), flat(config.model_dump(mode="json"))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise RunError(
            f"{out} was started with other settings ({', '.join(changed)}); a resumed run keeps them, "
            "or choose another --out"
        )
    if data != fingerprint(dataset):
        raise RunError(f"{out} was started on other data; a resumed run keeps its data set")
    return True


def _recorded(out: Path) -> tuple[dict[str, Any], str]:
    """Return the recorded settings and the fingerprint of the data. Raises `RunError` for a damaged file."""
    try:
        settings = yaml.safe_load((out / "config.yaml").read_text("utf-8")) or {}
        environment = json.loads((out / "environment.json").read_text("utf-8"))
        return dict(settings), str(dict(environment).get("data_sha256"))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise RunError(f"the records of {out} are damaged ({error}); choose another --out") from error


def record_run(out: Path, config: RunSettings, dataset: DataSet, data: Path, threads: int | None) -> None:
    """Make the run folder and record settings and surroundings.

    data: folder of the data set.
    threads: CPU threads; None for all cores.
    """
    out.mkdir(parents=True, exist_ok=True)
    config.save(out / "config.yaml")
    environment = {
        "data": str(data),
        "data_sha256": fingerprint(dataset),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "gems": package_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "machine": platform.machine(),
        "threads": threads or os.cpu_count(),
    }
    (out / "environment.json").write_text(json.dumps(environment, indent=2) + "\n", "utf-8")
