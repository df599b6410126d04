"""Fixed choices for data that lacks searches.

Every choice is a keyed BLAKE2b hash of what it is about, so it is the same on every machine and
version, and does not change when other rows come or go.
"""

from __future__ import annotations

from hashlib import blake2b


class Simulation:
    """Choices of one data set; `name` keys the hash, so that data sets do not share their choices."""

    def __init__(self, name: str) -> None:
        self._name = name

    def choose(self, purpose: str, options: int, *about: str | int) -> int:
        """A number in `0 .. options - 1`, fixed by what it is for and about."""
        if options < 1:
            raise ValueError("there must be something to choose from")
        text = "\x1f".join(map(str, about)).encode()
        digest = blake2b(text, key=f"gems {self._name} {purpose}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % options

    def is_search(self, user: str | int, position: int) -> bool:
        """Whether the user's interaction at that position (0-based, oldest first) is a search: half are."""
        return self.choose("behaviour", 2, user, position) == 1
