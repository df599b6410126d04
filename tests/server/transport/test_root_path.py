"""A server below a prefix: everything works through a proxy that strips it and through one that does not."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient
from support.engines import hosted
from support.proxy import proxied
from support.servers import serving

from index.bundle.bundle import Bundle
from server.api.paths import ADMINISTRATION, DOCS, NAMED, PLAYGROUND, QUIET, RANKING, SWAGGER_UI
from server.app import create_app
from server.engine.torch_backend.engine import TorchEngine
from server.settings import Settings

PREFIX = "/shop/gems"
KEYS = {"api_keys": "right", "admin_key": "admin"}


@pytest.fixture(scope="module")
def port(bundle: Bundle, engine: TorchEngine) -> Iterator[int]:
    with serving(create_app(bundle, hosted(engine), Settings(root_path=PREFIX))) as port:
        yield port


@pytest.fixture(scope="module")
def locked(bundle: Bundle, engine: TorchEngine) -> Iterator[int]:
    """The same with keys."""
    with serving(create_app(bundle, hosted(engine), Settings(root_path=PREFIX, **KEYS))) as port:
        yield port


@pytest.fixture(scope="module", params=["strips", "passes on", "no proxy"])
def base(request: pytest.FixtureRequest, port: int) -> Iterator[str]:
    """The address of the web page, with a slash at the end."""
    if request.param == "no proxy":
        yield f"http://127.0.0.1:{port}/"
    else:
        with proxied(port, PREFIX, strips=request.param == "strips") as address:
            yield address


def test_every_path_is_answered_below_the_prefix(base: str) -> None:
    for path in (*QUIET, "/v1/items?prefix=s", "/items?id=item-1"):
        answer = httpx.get(urljoin(base, path.lstrip("/")))
        assert answer.status_code == 200, path
    for path in RANKING:
        task = {"task": "search", "query": "river"}
        body = {"requests": [task]} if "batch" in path else {"query": "river"} if "search" in path else {}
        answer = httpx.post(urljoin(base, path.lstrip("/")), json=body)
        assert answer.status_code == 200, path
    for path in ADMINISTRATION:
        assert httpx.post(urljoin(base, path.lstrip("/"))).status_code == 404  # no key is set


@pytest.mark.parametrize("page", ["", "docs"])
def test_what_a_page_refers_to_lies_below_the_prefix(base: str, page: str) -> None:
    address = urljoin(base, page)
    references = re.findall(r'(?:src|href)="([^"]+)"', httpx.get(address).text)
    assert len(references) >= 4
    for reference in references:
        target = urljoin(address, reference)
        assert target.startswith(base)
        assert httpx.get(target).status_code == 200, target


def test_the_document_says_where_the_server_is(base: str) -> None:
    document = httpx.get(urljoin(base, "openapi.json")).json()
    assert document["servers"] == [{"url": PREFIX}]
    assert "/v1/search" in document["paths"]


def test_without_a_prefix_the_document_names_no_server(client: TestClient) -> None:
    assert "servers" not in client.get("/openapi.json").json()
    assert client.get("/shop/gems/info").status_code == 404


def test_the_bare_prefix_leads_to_the_page(port: int) -> None:
    answer = httpx.get(f"http://127.0.0.1:{port}{PREFIX}?a=1")
    assert answer.status_code == 308
    assert answer.headers["location"] == f"{PREFIX}/?a=1"
    with proxied(port, PREFIX, strips=False) as base:
        assert httpx.get(base.rstrip("/"), follow_redirects=True).text.startswith("<!doctype html>")


def test_metrics_and_log_know_no_prefix(
    bundle: Bundle, engine: TorchEngine, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(bundle, hosted(engine), Settings(root_path=PREFIX))
    with caplog.at_level(logging.DEBUG, "server.request"), TestClient(app) as client:
        for path in ("/v1/recommend", f"{PREFIX}/v1/recommend"):
            assert client.post(path, json={}).status_code == 200
        client.get(f"{PREFIX}/health/live")
        client.get(f"{PREFIX}/nowhere")
        assert 'gems_requests_total{outcome="ok",task="recommendation"} 2.0' in client.get("/metrics").text
    lines = [record for record in caplog.records if record.name == "server.request"]
    assert [record.path for record in lines][:4] == [*["/v1/recommend"] * 2, "/health/live", "other"]
    assert lines[2].levelno == logging.DEBUG


def tricks(path: str) -> Iterator[str]:
    """Yield ways to write a path with prefixes that some part of a server may read otherwise."""
    encoded = "".join(f"%{ord(c):02x}" for c in path)
    for before in (
        "",
        PREFIX,
        PREFIX * 2,
        "/shop",
        "/gems",
        "/",
        "/.",
        f"{PREFIX}/.",
        f"{PREFIX}/..",
        "/%2e%2e",
    ):
        yield before + path
        yield before + encoded
    yield f"{PREFIX}/{path}"
    yield f"//shop/gems{path}"
    yield PREFIX.replace("/", "%2f") + path
    yield PREFIX.upper() + path
    yield f"{PREFIX};a=b{path}"
    yield f"{PREFIX}%00{path}"
    yield f"{PREFIX}{path}/"
    yield f"{path}?{PREFIX}"
    yield f"http://127.0.0.1{PREFIX}{path}"
    yield f"{PREFIX}\\{path}"


def status(port: int, method: str, target: str, headers: str = "") -> int:
    """Send a request line as it is, which a client library would tidy up, and return the status."""
    body = b"{}" if method == "POST" else b""
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return int(connection.recv(65536).split(maxsplit=2)[1])


def test_no_spelling_of_a_path_gets_around_a_key(locked: int) -> None:
    closed = [("POST", path) for path in (*RANKING, *ADMINISTRATION)]
    closed += [("GET", "/items"), ("GET", "/v1/items"), ("GET", "/v1/items?prefix=s")]
    seen = set()
    for method, path in closed:
        for target in tricks(path):
            seen.add(status(locked, method, target))
            assert status(locked, method, target) in (400, 401, 404, 405), target
        for target in (path, PREFIX + path):
            assert status(locked, method, target) == 401
    assert {401, 404} <= seen
    right = "Authorization: Bearer right\r\n"
    assert status(locked, "POST", f"{PREFIX}/v1/recommend", right) == 200
    assert status(locked, "GET", f"{PREFIX}/items?prefix=s", right) == 200


@pytest.mark.parametrize("outer", ["/outer", PREFIX, "/v1"])
def test_a_prefix_of_the_program_around_it_is_no_way_around_a_key(
    bundle: Bundle, engine: TorchEngine, outer: str
) -> None:
    """`uvicorn --root-path` and mounted applications put their own prefix into the path."""
    app = create_app(bundle, hosted(engine), Settings(root_path=PREFIX, **KEYS))
    with TestClient(app, root_path=outer) as client:
        for path in tricks("/recommend"):
            if path.startswith("/") and "\\" not in path:
                assert client.post(outer + path, json={}).status_code in (401, 404, 405), path
        assert client.post(f"{outer}/recommend", json={}).status_code == 401
        key = {"Authorization": "Bearer right"}
        assert client.post(f"{outer}/recommend", json={}, headers=key).status_code == 200


@pytest.mark.parametrize("value", ["", "/gems", "/a/b-c/d_e.f~g", "/v2", "/searching"])
def test_prefixes(value: str) -> None:
    assert Settings(root_path=value).root_path == value


@pytest.mark.parametrize(
    "value",
    [
        *(
            "/",
            "gems",
            "/gems/",
            "//gems",
            "/a//b",
            "/a b",
            "/ä",
            "/a?b",
            "/a#b",
            "/<b>",
            '/"',
            "/a\n",
            " /a",
        ),
        *("/%2e", "/..", "/a/../b", "/.", "http://host/gems", "/a\\b", "/{a}"),
    ],
)
def test_what_is_no_prefix_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="GEMS_ROOT_PATH is a path such as"):
        Settings(root_path=value)


@pytest.mark.parametrize("path", sorted(NAMED - {"/"}))
def test_a_prefix_that_could_be_a_path_of_the_server_is_refused(path: str) -> None:
    """Whether `/v1/items` lies below the prefix `/v1`, or is the path itself, nobody could tell."""
    first = "/" + path.split("/")[1]
    for value in (first, f"{first}/x"):
        with pytest.raises(ValidationError, match="must not begin like a path of the server"):
            Settings(root_path=value)


def test_the_paths_of_both_pages_are_among_those_checked() -> None:
    assert {*DOCS, *SWAGGER_UI, *PLAYGROUND} <= set(QUIET)
