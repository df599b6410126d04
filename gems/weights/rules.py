"""Settings that all projected weights of an optimizer share."""

from __future__ import annotations

from dataclasses import dataclass

from gems.model.knowledge import KnowledgeBasis


@dataclass(frozen=True)
class Rules:
    """Settings that all weights of an optimizer share; see `gems.optimizer.GEMS`."""

    tasks: tuple[str, ...]
    deflate: bool
    transport: bool
    rank_scaling: bool
    growth_limit: float | None
    relative: bool
    knowledge: KnowledgeBasis | None
    energy: float
    cap: float
    softness: float | None
    output_bases: bool
    seed: int
