"""All terms of a catalogue in alphabetical order, and the ones that are near a word that is not among them.

A term is named by its place. The terms are one array of UTF-8 letters; UTF-8 keeps the order of code points.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA

from index.arrays import read_offsets, read_vector

SHORTEST = 3  # characters of a word that may have a typing error, and of a beginning
LONG = 8  # characters of a word that may have two
LONGEST = 64  # characters of a word that is compared at all
NEAREST = 5  # terms that replace a word
PENALTY = {
    "beginning": 0.7,
    1: 0.5,
    2: 0.25,
}  # factor of the score: as a beginning, after one edit, after two
_AFTER = b"\xff"  # sorts after every UTF-8 letter
_BITS = 64


@dataclass(frozen=True, eq=False)
class Lexicon:
    """Terms, ascending.

    letters: uint8, all terms in UTF-8.
    first: int64 [terms + 1]; letters[first[k] : first[k + 1]] is term k.
    plain: int64, the places of the terms without digits, ascending.
    signatures: uint64, the set of characters of each of these terms, as bits.
    lengths: int16, the number of their characters, at most `LONGEST` + 2.
    """

    letters: NDArray[np.uint8]
    first: NDArray[np.int64]
    plain: NDArray[np.int64]
    signatures: NDArray[np.uint64]
    lengths: NDArray[np.int16]

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays."""
        return self.letters.nbytes + self.first.nbytes

    @classmethod
    def of(cls, terms: Sequence[str]) -> Lexicon:
        """Build it from distinct terms in ascending order."""
        written = [term.encode() for term in terms]
        first = np.cumsum([0, *map(len, written)], dtype=np.int64)
        return cls._with_signatures(np.frombuffer(b"".join(written), np.uint8), first)

    @classmethod
    def _with_signatures(cls, letters: NDArray[np.uint8], first: NDArray[np.int64]) -> Lexicon:
        """Add the arrays that are not stored. letters, first: valid ones."""
        place = np.concatenate([[0], np.cumsum(_begins_character(letters))])[first]
        codes = np.frombuffer(letters.tobytes().decode().encode("utf-32-le"), np.uint32)
        digit = (codes >= ord("0")) & (codes <= ord("9"))
        plain = np.flatnonzero(~np.logical_or.reduceat(digit, place[:-1]))
        bits = np.uint64(1) << (codes % _BITS).astype(np.uint64)
        lengths = np.diff(place).clip(max=LONGEST + 2).astype(np.int16)
        return cls(letters, first, plain, np.bitwise_or.reduceat(bits, place[:-1])[plain], lengths[plain])

    def find(self, term: str) -> int | None:
        """Return the place of a term, or None if it is not there."""
        written = term.encode()
        place = self._place(written)
        return place if place < len(self) and self._written(place) == written else None

    def begun(self, prefix: str) -> tuple[int, int]:
        """Return the range [begin, end) of the terms with this prefix."""
        written = prefix.encode()
        return self._place(written), self._place(written + _AFTER)

    def term(self, place: int) -> str:
        """Return the term at a place."""
        return self._written(place).decode()

    def terms(self) -> list[str]:
        """Return all terms, ascending."""
        letters = self.letters.tobytes()
        return [letters[begin:end].decode() for begin, end in pairwise(self.first.tolist())]

    def near(self, word: str, frequency: NDArray[np.integer], *, unfinished: bool) -> list[tuple[int, float]]:
        """Return the places and penalties of at most `NEAREST` terms that may stand for a word which is not a term.

        These are terms at one edit from the word (a letter more, less, another one, or two swapped), and if it has
        `LONG` characters, at two edits behind the same first letter. A word with a digit is never edited, for another
        code is another thing. The nearest terms come first, the most frequent of them before the others.

        frequency: int [terms], in how many items each term is.
        unfinished: whether terms that begin with the word count as well.
        """
        if not SHORTEST <= len(word) <= LONGEST:
            return []
        found: dict[int, float] = {}
        if unfinished:
            begin, end = self.begun(word)
            best = begin + np.argsort(-frequency[begin:end], kind="stable")[:NEAREST]
            found = dict.fromkeys(best.tolist(), PENALTY["beginning"])
        if not any(map(str.isdigit, word)):
            for place in self._edited(word, 1, ""):
                found.setdefault(place, PENALTY[1])
            for place in self._edited(word, 2, word[0]) if len(word) >= LONG else ():
                found.setdefault(place, PENALTY[2])
        nearest = sorted(found, key=lambda place: (-found[place], -int(frequency[place]), place))[:NEAREST]
        return [(place, found[place]) for place in nearest]

    def _edited(self, word: str, most: int, prefix: str) -> list[int]:
        """Return the places of terms with a prefix and without digits, at no more than `most` edits from a word.

        One edit changes at most two bits of a signature, so few terms have to be compared.
        """
        begin, end = np.searchsorted(self.plain, self.begun(prefix)) if prefix else (0, len(self.plain))
        mine = np.bitwise_or.reduce(np.uint64(1) << np.array([ord(c) % _BITS for c in word], np.uint64))
        similar = np.bitwise_count(self.signatures[begin:end] ^ mine) <= 2 * most
        similar &= np.abs(self.lengths[begin:end] - len(word)) <= most
        likely = self.plain[begin:end][similar].tolist()
        return [place for place in likely if OSA.distance(word, self.term(place), score_cutoff=most) <= most]

    def _place(self, written: bytes) -> int:
        return bisect_left(range(len(self)), written, key=self._written)

    def _written(self, place: int) -> bytes:
        return self.letters[self.first[place] : self.first[place + 1]].tobytes()

    def save(self, folder: Path) -> None:
        """Write `term_letters.npy` and `term_first.npy`."""
        np.save(folder / "term_letters.npy", self.letters)
        np.save(folder / "term_first.npy", self.first)

    @classmethod
    def open(cls, folder: Path) -> Lexicon:
        """Read what `save` wrote. Raises `ValueError` with the name of the file that is missing or damaged."""
        letters = read_vector(folder / "term_letters.npy", np.uint8)
        first = read_offsets(folder / "term_first.npy", None, len(letters))
        try:
            letters.tobytes().decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{folder / 'term_letters.npy'} is damaged: {error}") from error
        if (first[1:] == first[:-1]).any() or not _begins_character(letters)[first[:-1]].all():
            raise ValueError(
                f"{folder / 'term_first.npy'} is damaged: a term must begin with a whole character"
            )
        return cls._with_signatures(letters, first)


def _begins_character(letters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each byte of UTF-8 text is the first one of a character: bool, same shape."""
    begins: NDArray[np.bool_] = (letters & 0xC0) != 0x80
    return begins
