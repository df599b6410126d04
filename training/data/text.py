"""Words of a text, for matching queries with items."""

from __future__ import annotations

import re

_WORD = re.compile(r"[\w']+")


def words(text: str) -> list[str]:
    """Lower-case words in order: letters and digits of any script, and apostrophes."""
    return _WORD.findall(text.lower())
