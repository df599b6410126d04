"""Whether this server should be sent requests."""

from __future__ import annotations

from typing import Literal

Status = Literal["starting", "ready", "draining"]


class Readiness:
    """What `/health/ready` says. A draining server still answers whatever reaches it."""

    def __init__(self) -> None:
        self.status: Status = "starting"

    @property
    def ready(self) -> bool:
        return self.status == "ready"
