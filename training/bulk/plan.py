"""The plan of a bulk ranking: everything that its answers depend on, so that a resumed run is the same one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from index.bundle.bundle import Bundle
from index.records import read_json
from training.bulk.entry import BulkError

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """Bundle, input and settings of a run, ready for JSON.

    bundle: `bundle_id`, `index_version`, and the hash of their files.
    source: `column`, `requests` (their number) and `sha256`.
    settings: by their names in requests and of the server.
    """

    bundle: Mapping[str, Any]
    source: Mapping[str, Any]
    settings: Mapping[str, Any]
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the plan as JSON text, the same for the same plan."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a file that `to_json` was written to. Raises `BulkError`."""
        try:
            return cls(**read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise BulkError(f"{path} cannot be read ({error}); remove its folder to begin anew") from error

    def differences(self, other: Plan) -> str | None:
        """Return in what another plan differs; None if it does not."""
        if self == other:
            return None
        if self.format != other.format:
            return "another version of gems"
        said = []
        if self.bundle != other.bundle:
            ids = " ".join(f"{other.bundle.get(name)}" for name in ("bundle_id", "index_version"))
            said.append(f"another bundle or index version ({ids})")
        if self.source != other.source:
            said.append("other people, queries or requests")
        names = sorted(self.settings.keys() | other.settings.keys())
        changed = [name for name in names if self.settings.get(name) != other.settings.get(name)]
        if changed:
            said.append(f"other settings ({', '.join(changed)})")
        return " and ".join(said)


def bundle_facts(bundle: Bundle) -> dict[str, str]:
    """Return what identifies a bundle with its index version: names, and one hash of all files."""
    return {
        "bundle_id": bundle.info.bundle_id,
        "index_version": bundle.index.version,
        "sha256": bundle.sha256(),
    }
