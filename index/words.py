"""Words as people type them: one rule for item texts, titles and queries.

A text is *folded* first, so that spellings of the same letter do not count:

    case                 Star = STAR, ß = ss, ς = σ; Turkish ı and İ = i
    compatible forms     NFKC: full-width ＡＢＣ = ABC, half-width ﾊﾟ = パ, ﬁ = fi, Ⅳ = iv
    accents              of Latin and Greek letters: é = e, ά = α; ø = o, ł = l, đ = ð = d, æ = ae, œ = oe, þ = th
    Cyrillic             ё = е, no stress marks; й, ї and ў are letters of their own
    Arabic, Hebrew       no vowel points and tatweel; alef, yeh, kaf and teh marbuta have one form each
    digits               of every script: ٣ = 3
    apostrophes          dropped: Schindler's = schindlers; so are · in Catalan words and " in Hebrew ones
    invisible            soft hyphens, joiners, direction marks and variation selectors are dropped; ™ is no letter
    kept                 marks that make another letter: Japanese パ, Indic vowel signs and viramas, Thai vowels

A *word* is then a run of letters, digits and marks, as in UAX #29, with these differences:

- Punctuation separates words (rock.pop), but "." and "," hold digits together (3.5, 1,000), and initials are one word
  (E.T. = et).
- Languages that write no spaces (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar) are cut into pairs of characters:
  食パン gives 食パ and パン. A letter and its marks are one character. A run of one character is a word.

The *terms* of an item are what a query may find it by: its words, and in addition

- the joined form of a compound: parts with single hyphens between them (T-shirt: tshirt; WD-40: wd40), or with any of
  - . / _ if it holds a digit (AB-1234/5: ab12345). Digits alone are a compound if there are six or more (not 24-7);
- a number without the commas of its thousands (1,000: 1000);
- the single characters of languages without spaces, so that 侍 finds 七人の侍.

A *query word* is in an item if one of its *spellings* is: the word itself; the joined form of the compound or number
that it belongs to; its two halves, if it is letters and a number (wd40: wd and 40); itself joined with its neighbour,
if one of them is a number (wd 40: wd40). So wd40, WD-40 and "wd 40" find each other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import regex

_FEWEST_DIGITS = 6  # of a compound without letters
_PIECE = 1000  # characters that are cut into words at once, where one word is enough
_APOSTROPHES = "’‘ʼʻ′׳״·"  # beside the ASCII ones
_LETTERS = {
    "ø": "o", "ł": "l", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe", "þ": "th", "ı": "i", "ħ": "h", "ŧ": "t", "ŋ": "n",
    "ё": "е", "ѐ": "е", "ѝ": "и",
    "آ": "ا", "أ": "ا", "إ": "ا", "ٱ": "ا", "ى": "ي", "ی": "ي", "ک": "ك", "ة": "ه", "٫": ".", "٬": ",",
    "‐": "-", "‑": "-", "‒": "-", "–": "-", "−": "-",
}  # fmt: skip
_ACCENTED = regex.compile(r"[[\p{Latin}\p{Greek}]&&\p{L}]", regex.V1)
_DROPPED = regex.compile(
    r"[\u0300-\u036F\u0483-\u0489\u1AB0-\u1AFF\u1DC0-\u1DFF\u20D0-\u20FF\uFE20-\uFE2F"
    r"\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7"  # Hebrew points
    r"\u0610-\u061A\u0640\u064B-\u0652\u0656-\u065F\u0670\u06D6-\u06ED\u08D3-\u08FF]",  # Arabic points, tatweel
    regex.V1,
)
_BEFORE = regex.compile(r"[\p{Cf}\p{Variation_Selector}™℠¼-¾⅐-⅞↉]")
_NOT_ASCII = re.compile("[^\x00-\x7f]+")
_HEBREW_QUOTE = regex.compile(r'(?<=\p{Hebrew})"(?=\p{Hebrew})')

_UNSPACED = r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー]&&[\p{L}\p{N}]]"
_SPACED = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}][[\p{{L}}\p{{N}}\p{{M}}]--{_UNSPACED}]*"
_CHARACTER = regex.compile(rf"{_UNSPACED}\p{{M}}*", regex.V1)
_RUN = regex.compile(rf"((?:{_UNSPACED}\p{{M}}*)+)|{_SPACED}(?:[-./_,]{_SPACED})*", regex.V1)
_ASCII_RUN = re.compile("[a-z0-9]+(?:[-./_,][a-z0-9]+)*")

_COMMA = re.compile("(?<![0-9]),|,(?![0-9])")  # not within a number
_JOINT = re.compile("([-/_]|(?<![0-9])[.]|[.](?![0-9]))")
_INITIALS = regex.compile(r"\p{L}\p{M}*(?:\.\p{L}\p{M}*)+")
_NUMBER = re.compile("[0-9][0-9.,]*")
_THOUSANDS = re.compile("[0-9]{1,3}(?:,[0-9]{3})+(?:[.][0-9]+)?")
_HALVES = regex.compile(r"([\p{L}\p{M}]+)([0-9][0-9.,]*)|([0-9][0-9.,]*)([\p{L}\p{M}]+)")


class _Folding(dict[int, str | int]):
    """The text for each character after NFKC and case folding, for `str.translate`; filled as characters come."""

    def __missing__(self, code: int) -> str | int:
        character = chr(code)
        folded: str | int = code
        if _DROPPED.match(character):
            folded = ""
        elif (digit := unicodedata.decimal(character, None)) is not None:
            folded = str(digit)
        elif _ACCENTED.match(character) and (bare := unicodedata.normalize("NFD", character)[0]) != character:
            folded = self[ord(bare)]
        self[code] = folded
        return folded


_FOLDING = _Folding({ord(character): letters for character, letters in _LETTERS.items()})
_FOLDING |= dict.fromkeys(map(ord, _APOSTROPHES), "")


def fold(text: str) -> str:
    """Return the text without what does not count: case, accents, widths, apostrophes (see the module)."""
    text = text.replace("'", "").replace("`", "")
    if text.isascii():
        return text.lower()
    text = _BEFORE.sub(_before, text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if '"' in text:
        text = _HEBREW_QUOTE.sub("", text)
    return _NOT_ASCII.sub(lambda some: some[0].translate(_FOLDING), text)


def _before(sign: regex.Match[str]) -> str:
    """Return what stands for a sign that NFKC would join to the word before (Lego™, 8½) or that nobody sees."""
    if sign[0] in "™℠\u200b":  # the last is an invisible space, between Thai or Khmer words
        return " "
    return f" {sign[0]} " if sign[0].isnumeric() else ""


def words(text: str) -> list[str]:
    """Return the words of a text in order: `Amélie (2001)` gives `amelie`, `2001`."""
    found: list[str] = []
    for run, unspaced in _runs(text):
        if unspaced:
            found += _pairs(_CHARACTER.findall(run))
        elif run.isalnum():
            found.append(run)
        else:
            found += [word for word, _ in _parts(run)]
    return found


def terms(text: str) -> list[str]:
    """Return what a query may find a text by: its words, joined compounds and numbers, and single characters."""
    found: list[str] = []
    for run, unspaced in _runs(text):
        if unspaced:
            characters = _CHARACTER.findall(run)
            found += _pairs(characters)
            found += characters if len(characters) > 1 else ()
        elif run.isalnum():
            found.append(run)
        else:
            parts = _parts(run)
            found += [word for word, _ in parts]
            found += dict.fromkeys(form for _, forms in parts for form in forms)
    return found


@dataclass(frozen=True, slots=True)
class QueryWord:
    """A word of a query.

    text: the word.
    spellings: the word itself, then others. An item has the word if its terms include all of one spelling.
    """

    text: str
    spellings: tuple[tuple[str, ...], ...]

    def is_in(self, terms: Collection[str]) -> bool:
        """Whether an item with these terms has the word. terms: a set is fastest."""
        return any(all(term in terms for term in spelling) for spelling in self.spellings)


def query_words(query: str) -> list[QueryWord]:
    """Return the words of a query in order, each once, with their spellings (see the module)."""
    found: dict[str, dict[tuple[str, ...], None]] = {}
    before = ""
    for run, unspaced in _runs(query):
        for word, forms in (
            [(pair, ()) for pair in _pairs(_CHARACTER.findall(run))] if unspaced else _parts(run)
        ):
            spellings = found.setdefault(word, {(word,): None})
            spellings |= dict.fromkeys((form,) for form in forms)
            if halves := _HALVES.fullmatch(word):
                spellings[tuple(half for half in halves.groups() if half)] = None
            if not unspaced and _are_halves(before, word):
                spellings[(before + word,)] = found[before][(before + word,)] = None
            before = "" if unspaced else word
    return [QueryWord(word, tuple(spellings)) for word, spellings in found.items()]


def spaced(found: Sequence[str]) -> str:
    """Return words as a person would type them, so that `words` of it gives the same: 食パ and パン are 食パン.

    found: neighbouring words of a text, as `words` gives them.
    """
    typed = ""
    last: list[str] = []
    for word in found:
        characters = _CHARACTER.findall(word)
        if len(last) == len(characters) == 2 and last[1] == characters[0]:
            typed += characters[1]
        else:
            typed += f" {word}" if typed else word
        last = characters
    return typed


def holds_all(terms: Collection[str], query: str) -> bool:
    """Whether an item with these terms has every word of the query. A query without words is held by every item."""
    return all(word.is_in(terms) for word in query_words(query))


def is_blank(query: str) -> bool:
    """Whether a query has no word: nothing but spaces, punctuation, symbols and invisible characters."""
    return not any(words(query[start : start + _PIECE]) for start in range(0, len(query), _PIECE))


def is_unspaced(word: str) -> bool:
    """Whether a word is of a language without spaces: a pair of characters, or a single one."""
    return _CHARACTER.match(word) is not None


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the runs of the folded text that hold words, and whether a run is of a language without spaces."""
    text = fold(text)
    if text.isascii():
        return ((run, False) for run in _ASCII_RUN.findall(text))
    return ((match[0], match[1] is not None) for match in _RUN.finditer(text))


def _pairs(characters: list[str]) -> list[str]:
    """Return the pairs of neighbours; a single character stays as it is."""
    return [first + second for first, second in pairwise(characters)] or characters


def _are_halves(first: str, second: str) -> bool:
    """Whether one is a number and the other is letters."""
    one_number = bool(_NUMBER.fullmatch(first)) != bool(_NUMBER.fullmatch(second))
    return one_number and _HALVES.fullmatch(first + second) is not None


def _parts(run: str) -> list[tuple[str, list[str]]]:
    """Return the words of a run, each with the joined forms that it belongs to."""
    found: list[tuple[str, list[str]]] = []
    for piece in _COMMA.split(run):
        if _INITIALS.fullmatch(piece):
            found.append((piece.replace(".", ""), []))
            continue
        parts = _JOINT.split(piece)  # words at even places, punctuation between them
        joined = _joined(parts[::2], set(parts[1::2]))
        for part in parts[::2]:
            plain = [part.replace(",", "")] if _THOUSANDS.fullmatch(part) else []
            found.append((part, plain + joined))
    return found


def _joined(parts: list[str], joints: set[str]) -> list[str]:
    """Return the joined form of a compound as the only entry; none if the parts are not one."""
    form = "".join(parts).replace(",", "")
    digits = sum(map(str.isdigit, form))
    is_code = digits > 0 and (digits < len(form) or digits >= _FEWEST_DIGITS)
    return [form] if joints and (is_code or (not digits and joints == {"-"})) else []
