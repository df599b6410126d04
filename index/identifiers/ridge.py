"""Ridge regression of one kind of vectors on another.

y(x) = ȳ + (x − x̄) P,   P = argmin Σ_i ‖(x_i − x̄) P − (y_i − ȳ)‖² + λ ‖P‖²,   λ = share · Σ_i ‖x_i − x̄‖² / d
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def ridge(x: NDArray[np.floating], y: NDArray[np.floating], share: float) -> tuple[Matrix, Matrix, Matrix]:
    """Return x̄ [d], ȳ [k] and P [d, k], float64.

    By float64, so that two runs begin with the same numbers: LAPACK's last bits may differ.

    x: [N, d].
    y: [N, k].
    share: λ as a multiple of the mean eigenvalue of the scatter of x.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean, centre = x.mean(0), y.mean(0)
    x -= mean
    scatter = x.T @ x
    strength = share * np.trace(scatter) / len(scatter)
    solved, *_ = np.linalg.lstsq(scatter + strength * np.eye(len(scatter)), x.T @ (y - centre), rcond=1e-12)
    return mean, centre, solved
