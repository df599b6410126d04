"""Keeps libraries from writing over our own progress."""

from __future__ import annotations

import logging


def quiet_libraries() -> None:
    """No progress bars and no advice from transformers; its errors still show."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    logging.getLogger("bm25s").setLevel(logging.WARNING)
