"""Both web pages below a prefix, in a real browser."""

from __future__ import annotations

import pytest
from support.engines import hosted
from support.proxy import proxied
from support.servers import serving

from index.bundle.bundle import Bundle
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[dev]'")
from playwright.sync_api import Browser, expect
from support.browser import CHROMIUM, MISSING, Visitor, recommended_in_docs

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)


@pytest.mark.parametrize("strips", [True, False], ids=["stripped", "passed on"])
def test_both_pages_work_below_a_prefix(
    browser: Browser, bundle: Bundle, engine: TorchEngine, strips: bool
) -> None:
    app = create_app(bundle, hosted(engine), Settings(root_path="/shop/gems"))
    with serving(app) as port, proxied(port, "/shop/gems", strips=strips) as base:
        visitor = Visitor(browser, base)  # complains about every request that leaves the prefix
        page = visitor.open("#item=item-3&query=river")
        for task in ("search", "recommend"):
            expect(page.locator(f"#{task} .items tbody tr")).to_have_count(10)
        expect(page.locator(".chip")).to_contain_text("Electric Voyage 3")
        page.click("#search .curl summary")
        expect(page.locator("#search .curl pre")).to_contain_text(f"curl -s {base}v1/search")
        page.click("nav a:has-text('API')")
        expect(page.locator(".opblock")).to_have_count(13)
        recommend = recommended_in_docs(page, '{"limit": 2}')
        answer = recommend.locator(".live-responses-table .response-col_description")
        expect(answer.last).to_contain_text('"rank": 2')
        expect(recommend.locator(".request-url pre")).to_have_text(f"{base}v1/recommend")
        visitor.context.close()
        assert visitor.complaints == []
