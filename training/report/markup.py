"""Text and tables as HTML. All text from a run's files is escaped."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence


def escape(text: object) -> str:
    """Escape text for element content and quoted attributes, in HTML and XML."""
    known = "".join(
        "\ufffd" if unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\t\n" else sign
        for sign in str(text)
    )
    return html.escape(known, quote=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table. Cells are plain text, which is escaped here; the first cell of a row is its name."""
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
    """Return a line that stands in place of a missing part."""
    return f'<p class="note">{escape(text)}</p>'


def figure(drawing: str, caption: str = "") -> str:
    """Return a figure with a caption. drawing: SVG markup, which is not escaped."""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="wide">{drawing}</div>{below}</figure>'
