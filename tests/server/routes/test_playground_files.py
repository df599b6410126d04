"""The files of the web page, over HTTP."""

from __future__ import annotations

from starlette.testclient import TestClient
from support.paths import ROOT

from server.api.paths import PLAYGROUND


def test_the_files_come_with_their_types_and_a_strict_policy(client: TestClient) -> None:
    for path in PLAYGROUND:
        response = client.get(path)
        assert response.status_code == 200
        assert response.content
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/playground/app.js").headers["content-type"] == "text/javascript; charset=utf-8"
    assert "/playground/app.js" not in client.get("/openapi.json").text


def test_every_file_of_the_folder_is_served_and_no_other() -> None:
    folder = ROOT / "server" / "static" / "playground"
    assert sorted(PLAYGROUND.values()) == sorted(file.name for file in folder.iterdir())


def test_a_known_file_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get("/", headers={"if-none-match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    assert client.get("/", headers={"if-none-match": '"other"'}).status_code == 200


def test_the_page_can_be_switched_off(make_client) -> None:
    client = make_client(playground=False)
    for path in PLAYGROUND:
        assert client.get(path).status_code == 404
    assert client.get("/v1/items?prefix=s").status_code == 200


def test_the_page_needs_no_key_and_counts_as_no_ranking(make_client) -> None:
    client = make_client(api_keys="right")
    assert client.get("/").status_code == 200
    assert client.post("/").status_code == 405
    assert 'outcome="ok"} 1.0' not in client.get("/metrics").text
