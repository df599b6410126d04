"""Reading stored arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_array(path: Path) -> NDArray[Any]:
    """Memory-map a `.npy` file. Raises `ValueError` naming a file that is missing or no such array."""
    try:
        stored: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return stored.view(np.ndarray)  # over the mapping: to index a `memmap` itself is several times slower
