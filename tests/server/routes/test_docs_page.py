"""The page at /docs: Swagger UI from this server alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from starlette.testclient import TestClient
from support.paths import ROOT

from server.api.paths import DOCS, NAMED, QUIET, SWAGGER_UI


class References(HTMLParser):
    """Collects the addresses that a page loads or links to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "action")]


def test_every_file_comes_from_this_server_under_a_strict_policy(client: TestClient) -> None:
    for path in (*DOCS, *SWAGGER_UI):
        response = client.get(path)
        assert response.status_code == 200
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert path in QUIET
        assert path in NAMED
    assert client.get("/redoc").status_code == 404


def test_the_page_refers_to_no_other_host_and_to_nothing_that_is_not_there(client: TestClient) -> None:
    references = References(client.get("/docs").text).found
    assert len(references) >= 4
    for reference in references:
        assert re.fullmatch(r"[a-z][\w./-]*", reference), f"{reference} is no relative path"
        assert client.get(f"/{reference}").status_code == 200
    start = client.get("/docs/start.js").text
    assert "http" not in start
    assert "validatorUrl: null" in start
    style = client.get("/docs/swagger-ui.css").text
    assert set(re.findall(r"url\(['\"]?(.{5})", style)) == {"data:"}
    assert "@import" not in style


def test_every_file_of_the_folder_is_served_and_no_other() -> None:
    folder = ROOT / "server" / "static" / "docs"
    assert sorted(DOCS.values()) == sorted(file.name for file in folder.iterdir())


def test_the_page_needs_no_key(make_client) -> None:
    assert make_client(api_keys="right").get("/docs").status_code == 200
