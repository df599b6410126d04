"""What a caller of this library can mend."""

from __future__ import annotations


class GemsError(ValueError):
    """A setting, a model, a knowledge basis or a state does not fit; the message says which and how."""
