"""Writing systems (scripts) of texts: Latin, Han, Cyrillic and others, by the share of their letters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import regex

SCRIPTS = (
    "Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai"
)  # fmt: skip
OTHER = "other"
_LETTERS = regex.compile(r"\p{L}+")
_OF_SCRIPT = {script: regex.compile(rf"\p{{{script}}}+") for script in SCRIPTS}


def shares(texts: Iterable[str]) -> dict[str, float]:
    """Return the share of each script among the letters of texts, the largest first; empty without letters."""
    counts = dict.fromkeys((*SCRIPTS, OTHER), 0)
    for text in texts:
        for letters in _LETTERS.findall(text):
            left = len(letters)
            for script, pattern in _OF_SCRIPT.items():
                if not left:
                    break
                count = sum(map(len, pattern.findall(letters)))
                counts[script] += count
                left -= count
            counts[OTHER] += max(left, 0)
    total = sum(counts.values())
    found = sorted(((script, count) for script, count in counts.items() if count), key=lambda pair: -pair[1])
    return {script: count / total for script, count in found}


def main_script(found: Mapping[str, float]) -> str | None:
    """Return the script of more than half of the letters, or None. found: see `shares`."""
    return next((script for script, share in found.items() if share > 1 / 2), None)
