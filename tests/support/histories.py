"""Random histories over a catalogue of 60 items."""

from __future__ import annotations

import numpy as np

from index.sequence.events import Event, Task


def histories(users: int = 30, seed: int = 0) -> list[list[Event]]:
    """Return histories of 1 to 25 events, about half of them searches."""
    rng = np.random.default_rng(seed)
    queries = ["comedy", "golden river", "western 1950s"]
    return [
        [
            Event(int(rng.integers(60)), Task.SEARCH, queries[rng.integers(3)])
            if rng.random() < 0.5
            else Event(int(rng.integers(60)))
            for _ in range(int(rng.integers(1, 26)))
        ]
        for _ in range(users)
    ]
