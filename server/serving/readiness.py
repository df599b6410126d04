"""Whether this server should be sent requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Stage = Literal["starting", "ready", "draining"]


class Readiness:
    """The state that `/health/ready` reports. A draining server still answers all requests that reach it.

    running: tells whether the engine runs.
    """

    def __init__(self, running: Callable[[], bool] = lambda: True) -> None:
        self.stage: Stage = "starting"
        self._running = running

    @property
    def status(self) -> str:
        """`starting`, `ready`, `restarting` (the engine was lost) or `draining`."""
        return "restarting" if self.stage == "ready" and not self._running() else self.stage

    @property
    def ready(self) -> bool:
        return self.status == "ready"
