"""The entry of the engine's process. Importing it imports no engine: the server needs the name alone."""

from __future__ import annotations

from typing import Any


def run(*arguments: Any) -> None:
    """Run the process to its end. arguments: those of `worker.run`."""
    from server.engine.process import worker  # the template has imported it

    worker.run(*arguments)
