"""Text and tables as HTML that nothing in a run's files can break out of."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence


def escape(text: object) -> str:
    """For element content and quoted attributes, of HTML and XML alike."""
    known = "".join(
        "\ufffd" if unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\t\n" else sign
        for sign in str(text)
    )
    return html.escape(known, quote=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Cells are text and are escaped here; the first of a row names it."""
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(c)}</td>" for c in cells)
        + "</tr>"
        for first, *cells in rows
    )
    return (
        f'<div class="wide"><table>{title}<thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def note(text: str) -> str:
    """One line in the place of what is missing."""
    return f'<p class="note">{escape(text)}</p>'


def figure(drawing: str, caption: str = "") -> str:
    """drawing: an SVG, which is markup already."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="wide">{drawing}</div>{below}</figure>'
