"""An HTML document that needs no other files."""

from __future__ import annotations

from training.report.markup import escape
from training.report.style import STYLE


def document(title: str, body: str) -> str:
    """Return a page with a heading.

    title: plain text, which is escaped here.
    body: HTML, which is not.
    """
    named = escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{named}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{named}</h1>\n{body}</body>\n</html>\n"
    )
