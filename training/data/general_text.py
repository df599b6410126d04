"""General text: Wikipedia articles that represent the knowledge of a language model before it is trained.

Every fifth article is *held out*: `gems preservation` measures on these. The others are *knowledge*: a tuning method
may read them. No article is in both parts.
"""

from __future__ import annotations

import bz2
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from training.data import assets

HELD_OUT_EVERY = 5
SHORTEST_ARTICLE = 2000  # characters of plain text; shorter articles are stubs

# sections of citations and links, without sentences
_APPENDICES = {
    "references", "external links", "further reading", "see also", "notes", "bibliography", "sources", "footnotes",
    "citations", "gallery", "notes and references", "references and notes", "works cited", "literature",
}  # fmt: skip
_DISAMBIGUATION = re.compile(r"\{\{\s*(?:[\w\s-]*disambig\w*|dab|hndis|geodis|surname)\s*(?:\||\}\})", re.I)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
_NOWIKI = re.compile(r"<nowiki>(.*?)</nowiki>", re.S | re.I)
_LEFT_OUT = "ref|math|gallery|source|syntaxhighlight|timeline|score|imagemap|references|hiero|chem"
_EMPTY_ELEMENT = re.compile(rf"<(?:{_LEFT_OUT})\b[^<>]*/>", re.I)
_ELEMENT = re.compile(rf"<({_LEFT_OUT})\b[^<>]*>.*?</\1\s*>", re.S | re.I)
_BREAK = re.compile(r"<(?:br|hr|li|p|div)\b[^<>]*>", re.I)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.I)
_LINK = re.compile(r"(\[\[)|(\]\])")
_TEMPLATE = re.compile(r"(\{\{)|(\}\})")
_TABLE = re.compile(r"^[ \t:*#;]*(\{\|)|^[ \t:]*(\|\})", re.M)
_DROPPED_LINK = re.compile(r"(?:file|image|category|media|template|[a-z]{2,3}|[a-z]{2,4}(?:-[a-z]+)+):", re.I)
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:|mailto:)?//[^\s\[\]]+(?:[ \t]+([^\[\]\n]*))?\]", re.I)
_URL = re.compile(r"\b(?:https?|ftp)://[^\s<>|\]]+", re.I)
_ITALIC_POSSESSIVE = re.compile(r"(?<!')''(?!')((?:[^'\n]|'(?!'))+)'''s\b")
_HEADING = re.compile(r"(={1,6})\s*(.*?)\s*\1\s*")
_NAMED = re.compile(r"\s*[\w-]+\s*=")

# templates inside sentences: name → position of the value that is the text; all others are left out
_TEXT_AT = {
    "nowrap": 0, "small": 0, "smaller": 0, "big": 0, "quote": 0, "blockquote": 0, "angbr": 0, "vanchor": 0,
    "abbr": 0, "nihongo": 0, "val": 0, "nts": 0, "sub": 0, "sup": 0, "keypress": 0, "lang": 1, "transl": -1,
}  # fmt: skip
_SYMBOLS = {"'s": "'s", "'": "'", "·": " ·", "nbsp": " ", "spaces": " ", "ndash": "–", "spaced ndash": " – ",
            "snd": " – ", "mdash": "—", "en dash": "–", "em dash": "—"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Article:
    """A plain-text article: one line for each paragraph, heading or list item."""

    title: str
    text: str


def articles() -> list[Article]:
    """Return all articles in the order of the dump, without redirects, disambiguation pages and stubs.

    Fetches the `wikipedia` asset. Raises `AssetError` if it is not available.
    """
    return list(_read())


def held_out_articles() -> list[Article]:
    """Return every fifth article: positions 4, 9, 14, ... of `articles()`."""
    return articles()[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]


def knowledge_articles() -> list[Article]:
    """Return the articles that are not held out."""
    return [a for k, a in enumerate(articles()) if k % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]


@lru_cache(maxsize=1)
def _read() -> tuple[Article, ...]:
    found = []
    with bz2.open(assets.main_file("wikipedia")) as file:
        for _, page in ElementTree.iterparse(file):
            if page.tag.rpartition("}")[2] != "page":
                continue
            text = page.findtext("{*}revision/{*}text") or ""
            redirect = page.find("{*}redirect") is not None
            if page.findtext("{*}ns") == "0" and not redirect and not _DISAMBIGUATION.search(text):
                article = Article(page.findtext("{*}title") or "", plain_text(text))
                if len(article.text) >= SHORTEST_ARTICLE:
                    found.append(article)
            page.clear()
    return tuple(found)


def token_windows(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[Article],
    length: int,
    limit_tokens: int | None = None,
) -> NDArray[np.int64]:
    """Return windows of `length` tokens, article by article: int64 [N, length], N · length ≤ `limit_tokens`.

    An article is cut into adjacent windows from its start, and the rest at its end is left out, so that no window
    crosses articles. If there is a limit, all articles give the same number of windows (or all they have), spread
    evenly over the article. The same arguments give the same windows. Special tokens in the text stay plain text.
    Raises `ValueError` if `length` is below 1.
    """
    if length < 1:
        raise ValueError(f"a window needs at least one token, got {length}")
    cut = []
    for article in texts:
        ids = encode_plain(tokenizer, article.text)
        cut.append(ids[: len(ids) // length * length].reshape(-1, length))
    available = np.array([len(windows) for windows in cut], np.int64)
    total = int(available.sum())
    counts = _even_counts(available, total if limit_tokens is None else min(total, limit_tokens // length))
    chosen = [
        windows[(2 * np.arange(count) + 1) * len(windows) // (2 * max(count, 1))]
        for windows, count in zip(cut, counts.tolist(), strict=True)
    ]
    return np.concatenate([np.empty((0, length), np.int64), *chosen])


def _even_counts(available: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Return counts with the sum `total`, as equal as possible, each at most `available`: int64, same shape."""
    counts = np.zeros_like(available)
    while (left := total - int(counts.sum())) > 0:
        unfilled = np.flatnonzero(counts < available)
        if left < len(unfilled):  # not enough for all: choose evenly spaced articles
            unfilled = unfilled[np.arange(left) * len(unfilled) // left]
        counts[unfilled] += 1
    return counts


def encode_plain(tokenizer: PreTrainedTokenizerFast, text: str) -> NDArray[np.int64]:
    """Return the token ids of a text, int64 [n], without special tokens (such as identifier tokens).

    Raises `ValueError` if the tokenizer returns one, except for its unknown token.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    before = backend.encode_special_tokens
    backend.encode_special_tokens = True  # "<|search|>" in a text is plain text
    try:
        ids = np.array(backend.encode(text, add_special_tokens=False).ids, np.int64)
    finally:
        backend.encode_special_tokens = before
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if np.isin(ids, list(special - {tokenizer.unk_token_id})).any():
        raise ValueError("the tokenizer turned plain text into a special token")
    return ids


def plain_text(markup: str) -> str:
    """Return the running text of MediaWiki markup.

    Left out are templates (except for a few inside sentences), tables, references, formulas, files, categories,
    comments, and sections of links and citations. Links and formatting are replaced by their text.
    """
    text = _COMMENT.sub("", markup)
    text = _NOWIKI.sub(lambda m: re.sub(r"[\[\]{}|'=*#:;<>]", lambda c: f"&#{ord(c[0])};", m[1]), text)
    text = _ELEMENT.sub("", _EMPTY_ELEMENT.sub("", text))
    text = _TAG.sub("", _BREAK.sub("\n", text))
    text = _innermost(text, _LINK, _link)  # before templates: a "|" of a link does not end their values
    text = _innermost(text, _TEMPLATE, _template)
    text = _innermost(text, _TABLE, lambda _: "")
    text = _URL.sub("", _EXTERNAL.sub(lambda m: m[1] or "", text))
    text = re.sub(r"'{2,}", "", _ITALIC_POSSESSIVE.sub(r"\1's", text))
    text = re.sub(r"__[A-Z]+__|\[\[|\]\]|\{\{|\}\}|\{\||\|\}", "", text)
    return "\n".join(_lines(text))


def _innermost(text: str, delimiters: re.Pattern[str], replace: Callable[[str], str]) -> str:
    """Replace the text between delimiters, inner pairs first.

    delimiters: group 1 opens, group 2 closes. A delimiter without a partner is dropped, and the text around it stays.
    """
    levels: list[list[str]] = [[]]
    end = 0
    for match in delimiters.finditer(text):
        levels[-1].append(text[end : match.start()])
        end = match.end()
        if match[1]:
            levels.append([])
        elif len(levels) > 1:
            inner = "".join(levels.pop())
            levels[-1].append(replace(inner))
    return "".join("".join(level) for level in levels) + text[end:]


def _link(inner: str) -> str:
    target, bar, label = inner.partition("|")
    target = target.strip()
    if _DROPPED_LINK.match(target):
        return ""
    if bar and label:
        return label
    name = target.removeprefix(":")
    return re.sub(r"^\w+:|\s*\([^()]*\)$", "", name) if bar else name  # [[Mercury (planet)|]] shows "Mercury"


def _template(inner: str) -> str:
    name, *values = inner.split("|")
    name = " ".join(name.lower().replace("_", " ").split())
    plain = [value.strip() for value in values if not _NAMED.match(value)]
    named = [re.sub(r"^\s*(?:1|text|quote)\s*=", "", v).strip() for v in values if _NAMED.match(v)]
    if name in _SYMBOLS:
        return _SYMBOLS[name]
    if name.startswith("lang-"):
        return plain[0] if plain else ""
    if name in ("convert", "cvt"):  # {{convert|5|km|mi}}, {{convert|5|to|10|km|mi}}
        return " ".join(
            plain[:4] if plain[1:2] and plain[1] in ("to", "and", "or", "by", "-", "–") else plain[:2]
        )
    if name == "as of":
        return f"As of {plain[0]}" if plain else ""
    if name == "chem":
        return "".join(plain)
    if name in ("quote", "blockquote") and not plain:
        return named[0] if named else ""
    if name in _TEXT_AT and plain:
        return plain[min(_TEXT_AT[name], len(plain) - 1)]
    return ""


def _lines(text: str) -> list[str]:
    """Return tidy lines, without list markers, empty sections and appendices."""
    lines: list[str] = []
    headings: list[tuple[int, str]] = []  # headings without text below them so far
    skipped: int | None = None  # level of the current appendix
    for raw in text.split("\n"):
        heading = _HEADING.fullmatch(raw.strip())
        if heading:
            level, title = len(heading[1]), _tidy(heading[2])
            if skipped is None or level <= skipped:
                skipped = level if title.lower() in _APPENDICES else None
                headings = [h for h in headings if h[0] < level]
                if skipped is None and title:
                    headings.append((level, title))
        elif skipped is None and not re.match(r"\s*[|!}]", raw):  # remains of broken tables
            line = _tidy(re.sub(r"^(?:[\s*#:;]+|-{4,})", "", raw))
            if re.search(r"\w", line):
                lines += [title for _, title in headings]
                headings = []
                lines.append(line)
    return lines


def _tidy(line: str) -> str:
    """Return a line with entities as characters, and without doubled spaces and empty brackets."""
    line = " ".join(html.unescape(line).split())
    line = re.sub(r"([(\[])[\s,;:]+", r"\1", line)
    line = re.sub(r"[\s,;:]+([)\]])", r"\1", line)
    line = re.sub(r"\s*\(\)", "", line)
    return re.sub(r"\s+([,.;:])(?=\s|$)", r"\1", line).strip()
