"""The run folder: record of settings, data and surroundings, and the check whether a run may be continued."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from index.contents import contents_of
from index.files import atomic_write
from index.records import read_json
from training.data.dataset import DataSet
from training.data.schema import package_version
from training.errors import UserError
from training.settings import RunSettings, flat, read_yaml


class RunError(UserError):
    """The run folder does not allow the requested run."""


def fingerprint(dataset: DataSet) -> str:
    """Return the SHA-256 of the catalogue's ids and of every interaction, in order."""
    digest = hashlib.sha256()
    log = dataset.users
    for ids in (pa.array(dataset.catalogue.item_ids, pa.large_string()), log.user_ids, log.texts):
        digest.update(pc.binary_length(ids).to_numpy(zero_copy_only=False).tobytes())
        digest.update("".join(ids.to_pylist()).encode())
    for column in (log.offsets, log.items, log.queries):
        digest.update(column.tobytes())
    return digest.hexdigest()


def items_fingerprint(dataset: DataSet) -> str:
    """Return the SHA-256 of everything that is known of the items: texts and attributes, too."""
    digest = hashlib.sha256()
    for item in dataset.catalogue:
        digest.update(json.dumps(item.to_json(), sort_keys=True).encode() + b"\x1e")
    return digest.hexdigest()


def check_run(
    out: Path, config: RunSettings, dataset: DataSet, resume: bool, bundle_sha256: str | None = None
) -> bool:
    """Return whether `out` holds a run that is to be continued. Nothing is written.

    resume: whether an existing run may be continued, also on another device.
    bundle_sha256: hash of the bundle that the run goes on from; None for a training from nothing.
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
    recorded, environment = _records(out)
    old = config.renamed(recorded)
    if old:
        raise RunError(
            f"{out} was started by an older version, whose settings had other names ({'; '.join(old[:3])}"
            f"{'; …' if len(old) > 3 else ''}); finish it with that version, or choose another --out"
        )
    if environment.get("bundle_sha256") != bundle_sha256:  # first: its settings follow from it
        raise RunError(_other_bundle(out, environment.get("bundle"), bundle_sha256))
    before, now = flat(recorded), flat(config.model_dump(mode="json"))
    changed = [
        name for name in now if name != "device" and _form(name, before.get(name)) != _form(name, now[name])
    ]
    if changed:
        raise RunError(
            f"{out} was started with other settings ({', '.join(changed)}); a resumed run keeps them, "
            "or choose another --out"
        )
    if environment.get("data_sha256") != fingerprint(dataset):
        raise RunError(f"{out} was started on other data; a resumed run keeps its data set")
    texts = items_fingerprint(dataset)
    if environment.get("items_sha256", texts) != texts:  # older versions did not record it
        raise RunError(
            f"{out} was started with other texts or attributes of the items; a resumed run keeps its data set"
        )
    return True


def _form(name: str, value: object) -> object:
    """Return a setting as far as a checkpoint depends on it: all precisions with float32 weights have the same.

    Older versions, which had no other weights, recorded none.
    """
    return "float32" if name == "backbone.precision" and value in (None, "auto", "autocast") else value


def _other_bundle(out: Path, recorded: object, bundle_sha256: str | None) -> str:
    if recorded is None:
        return f"{out} was started from nothing; resume it without --from, or choose another --out"
    if bundle_sha256 is None:
        return f"{out} was started from the bundle {recorded}; resume it with --from, or choose another --out"
    return (
        f"{out} was started from the bundle {recorded}, and --from names another one, or its items have changed since "
        "('gems index rollback' brings them back); or choose another --out"
    )


def _records(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the recorded settings and surroundings of a run. Raises `RunError`."""
    found = []
    for name, read in (("config.yaml", read_yaml), ("environment.json", read_json)):
        try:
            value = read(out / name)
        except (OSError, ValueError) as error:
            raise RunError(f"{out / name} cannot be read ({error}); choose another --out") from error
        if not isinstance(value, dict):
            raise RunError(f"{out / name} must hold names and values; choose another --out")
        found.append(value)
    return found[0], found[1]


def record_run(
    out: Path,
    config: RunSettings,
    dataset: DataSet,
    data: Path,
    threads: int | None,
    bundle: Mapping[str, str] | None = None,
) -> None:
    """Make the run folder and record settings and surroundings.

    data: folder of the data set.
    threads: CPU threads; None for all cores.
    bundle: `bundle`, the bundle that it goes on from, and `bundle_sha256`, its hash; None for one from nothing.
    """
    out.mkdir(parents=True, exist_ok=True)
    config.save(out / "config.yaml")
    environment = {
        "data": str(data),
        **(bundle or {}),
        "data_sha256": fingerprint(dataset),
        "items_sha256": items_fingerprint(dataset),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "gems": package_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "machine": platform.machine(),
        "threads": threads or os.cpu_count(),
    }
    with atomic_write(
        out / "environment.json", single_writer=True
    ) as draft:  # the last file: now it is a run
        draft.write_text(json.dumps(environment, indent=2) + "\n", "utf-8")
