"""What the user can mend about an evaluation."""

from __future__ import annotations

from training.errors import UserError


class EvaluationError(UserError):
    """The bundle, the runs or the data cannot be evaluated so."""
