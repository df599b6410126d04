"""The page at /docs in a real browser."""

from __future__ import annotations

import pytest
from support.engines import hosted
from support.servers import serving

from index.bundle.bundle import Bundle
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")
from playwright.sync_api import Browser, expect
from support.browser import CHROMIUM, MISSING, Visitor, recommended_in_docs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


def test_a_browser_shows_every_operation_and_sends_a_request(
    browser: Browser, bundle: Bundle, engine: TorchEngine
) -> None:
    with serving(create_app(bundle, hosted(engine), Settings())) as port:
        visitor = Visitor(browser, f"http://127.0.0.1:{port}/")
        page = visitor.tab("docs")
        expect(page.locator(".opblock")).to_have_count(13)
        recommend = recommended_in_docs(page, '{"limit": 2}')
        answer = recommend.locator(".live-responses-table .response-col_description")
        expect(answer.last).to_contain_text('"rank": 2')
        visitor.context.close()
        assert visitor.complaints == []  # no request to another host, nothing that the policy forbids
