"""The metrics of replicas in one answer: every series of each, and nothing counted twice."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from server.ray.scrape import LABEL, merged

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} comes twice"
            found[key] = sample.value
    return found


def test_every_series_of_each_replica_is_there_with_its_label(client: TestClient) -> None:
    scraped = {}
    for replica in ("one", "two"):
        assert client.post("/recommend", json={}).status_code == 200
        scraped[replica] = client.get("/metrics").content
    together = read(merged(scraped).decode())
    expected = {
        (name, labels | {(LABEL, replica)}): value
        for replica, text in scraped.items()
        for (name, labels), value in read(text.decode()).items()
    }
    # The values that are not numbers are equal to nothing.
    assert together.keys() == expected.keys()
    assert all(together[key] == value for key, value in expected.items() if value == value)


def test_types_and_help_come_once(client: TestClient) -> None:
    text = client.get("/metrics").content
    lines = merged({"one": text, "two": text}).decode().splitlines()
    alone = text.decode().splitlines()
    assert sorted(line for line in lines if line.startswith("#")) == sorted(
        line for line in alone if line.startswith("#")
    )
