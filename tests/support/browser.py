"""A real browser for the web page: Debian's Chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = "there is no Chromium on this machine: 'make browser' installs it, or apt-get install chromium"


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Containers run as root and have a small /dev/shm; no request of the browser's own.
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        try:
            yield browser
        finally:
            browser.close()


def recommended_in_docs(page: Page, body: str) -> Locator:
    """Send a recommendation from the page at /docs. Returns the part of the page about it."""
    recommend = page.locator("#operations-ranking-recommend")
    recommend.locator(".opblock-summary-control").click()
    recommend.locator(".try-out__btn").click()
    recommend.locator("textarea").fill(body)
    recommend.locator(".execute").click()
    return recommend


class Visitor:
    """A user of one server's pages. complaints: errors that the browser reports."""

    def __init__(self, browser: Browser, base: str, **options: object) -> None:
        self.base = base
        self.complaints: list[str] = []
        self.context: BrowserContext = browser.new_context(**options)  # type: ignore[arg-type]
        self.context.set_default_timeout(10_000)

    def open(self, path: str = "") -> Page:
        """Open the playground in a new tab and wait for the page and its first answers."""
        page = self.tab(path)
        self.settled(page)
        return page

    def tab(self, path: str = "") -> Page:
        """Open a page in a new tab."""
        page = self.context.new_page()
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", lambda request: self._see(request.url))
        page.goto(self.base + path)
        return page

    def settled(self, page: Page) -> None:
        """Wait for the description of the model and for every answer that is in progress."""
        page.wait_for_selector("#card > *")
        expect(page.locator("[aria-busy=true]")).to_have_count(0)

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")

    def _see(self, url: str) -> None:
        if not url.startswith(self.base):
            self.complaints.append(f"request to {url}")
