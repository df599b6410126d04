"""The metrics of all replicas in one answer, each series with the label `replica`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

LABEL = "replica"


def merged(scraped: Mapping[str, bytes]) -> bytes:
    """Return metrics in the text format of Prometheus. scraped: the same of each replica, by its id."""
    registry = CollectorRegistry()
    registry.register(_Merged(scraped))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, scraped: Mapping[str, bytes]) -> None:
        self._scraped = scraped

    def describe(self) -> list[Metric]:
        return []  # it names its series when they are asked for

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._scraped.items():
            for found in text_string_to_metric_families(text.decode()):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                family.samples += [
                    Sample(each.name, {**each.labels, LABEL: replica}, each.value) for each in found.samples
                ]
        yield from families.values()
