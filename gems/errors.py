"""Errors that the caller can correct."""

from __future__ import annotations


class GemsError(ValueError):
    """A setting, a model, a knowledge basis or a state does not fit. The message says which one and how."""
