"""Settings of a run: pydantic models that are checked, recorded in the run folder and compared on resume."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict


class RunSettings(BaseModel):
    """Base of the settings of a training and of a baseline; unknown names are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def save(self, path: Path) -> None:
        """Write the settings as YAML."""
        path.write_text(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False), "utf-8")
