"""Stages of a ranking request, in the order of time."""

from __future__ import annotations

from server.engine.contract import ENGINE_STAGES

STAGES = ("history", "tokenise", "pool", "queue", *ENGINE_STAGES, "explain")
