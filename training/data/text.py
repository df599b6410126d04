"""Words of a text, for matching queries with items."""

from __future__ import annotations

import re

_WORD = re.compile(r"[\w']+")


def words(text: str) -> list[str]:
    """Return the words of a text in order, in lower case: letters and digits of any script, and apostrophes."""
    return _WORD.findall(text.lower())
