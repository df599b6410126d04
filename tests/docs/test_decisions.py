"""`docs/decisions.md` keeps its form: each record has a date, a context and a choice."""

from __future__ import annotations

import re
from datetime import date

import pytest
from support.paths import ROOT

PAGE = (ROOT / "docs" / "decisions.md").read_text("utf-8")
RECORDS = dict(re.findall(r"^### (.+?)\n\n(.+?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def test_no_two_records_have_the_same_title() -> None:
    assert len(re.findall(r"^### ", PAGE, re.MULTILINE)) == len(RECORDS) > 100


@pytest.mark.parametrize("title", RECORDS)
def test_record_has_a_date_a_context_and_a_choice(title: str) -> None:
    parts = re.findall(r"^- \*\*(\w+)\.\*\* \S", RECORDS[title], re.MULTILINE)
    assert parts[:3] == ["Date", "Context", "Choice"]
    assert parts[3:] in ([], ["Cost"])
    (day,) = re.findall(r"^- \*\*Date\.\*\* (\S{10})", RECORDS[title], re.MULTILINE)
    assert date.fromisoformat(day) >= date(2026, 11, 23)
