"""Log lines are JSON and contain no text of a request."""

from __future__ import annotations

import json
import logging

from starlette.testclient import TestClient

from server.runtime.logs import JsonLines


def test_requests_are_logged_without_their_text(client: TestClient, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    body = {"query": "s3cret", "history": [{"item_id": "s3cret-item"}]}
    request_id = client.post("/search", json=body).json()["request_id"]
    client.post("/search", json={"query": "s3cret", "s3cret": 1})
    client.request("S3CRET", "/s3cret")
    lines = [JsonLines().format(record) for record in caplog.records if record.name.startswith("server")]
    assert "s3cret" not in "".join(lines).lower()
    entries = [json.loads(line) for line in lines]
    assert [(entry["path"], entry["status"]) for entry in entries] == [
        ("/search", 200),
        ("/search", 422),
        ("other", 404),
    ]
    assert entries[0]["request_id"] == request_id
    assert entries[0]["ms"] > 0


def test_exceptions_are_logged_without_their_message() -> None:
    try:
        raise ValueError("words\nof a query")
    except ValueError as error:
        record = logging.LogRecord(
            "server", logging.ERROR, __file__, 1, "failed", (), (type(error), error, None)
        )
        record.exc_info = (type(error), error, error.__traceback__)
    line = JsonLines().format(record)
    entry = json.loads(line)
    assert "\n" not in line
    assert "query" not in line
    assert entry["error"] == "ValueError"
    assert "test_logs.py" in entry["trace"][-1]
