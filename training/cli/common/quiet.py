"""Settings that keep libraries from printing over the progress bars."""

from __future__ import annotations

import logging


def quiet_libraries() -> None:
    """Turn off progress bars and advice of transformers; its errors still show."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    logging.getLogger("bm25s").setLevel(logging.WARNING)
