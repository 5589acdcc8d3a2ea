"""The Prometheus texts of several replicas as one text with a `replica` label."""

from collections.abc import Iterator, Mapping

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry


def merge_expositions(texts: Mapping[str, str]) -> str:
    """`texts` maps a replica to its text; each family appears once, with everybody's samples."""
    registry = CollectorRegistry()
    registry.register(_Replicas(texts))
    return generate_latest(registry).decode()


class _Replicas(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in sorted(self._texts.items()):
            for parsed in text_string_to_metric_families(text):
                family = families.setdefault(
                    parsed.name, Metric(parsed.name, parsed.documentation, parsed.type)
                )
                for sample in parsed.samples:
                    labels = {**sample.labels, "replica": replica}
                    family.add_sample(sample.name, labels, sample.value)
        yield from families.values()
