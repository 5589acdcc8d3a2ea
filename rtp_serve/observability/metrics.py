"""Every metric by name, and where measurements go. vLLM's names under our prefix, so boards port.

A sink is handed to whoever measures. `PrometheusSink` keeps figures in this process for `/metrics`;
the sink that reports to Ray is in `deployments/`.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as PrometheusFamily
from prometheus_client.registry import Collector

PREFIX = "rtp_serve:"

_TTFT_BUCKETS = (
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
)  # fmt: skip
_TOKEN_BUCKETS = (
    0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5,
)  # fmt: skip
_REQUEST_BUCKETS = (
    0.05, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip


class MetricKind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric's name (without prefix), meaning and shape."""

    name: str
    kind: MetricKind
    help: str
    buckets: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


def _counter(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.COUNTER, text, labels=labels)


def _gauge(name: str, text: str) -> Metric:
    return Metric(name, MetricKind.GAUGE, text)


def _histogram(name: str, text: str, buckets: tuple[float, ...]) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, text, buckets)


TTFT = _histogram("time_to_first_token_seconds", "Arrival to first token.", _TTFT_BUCKETS)
ITL = _histogram("inter_token_latency_seconds", "Gap between tokens.", _TOKEN_BUCKETS)
TPOT = _histogram(
    "request_time_per_output_token_seconds", "Decode time per output token.", _TOKEN_BUCKETS
)
E2E = _histogram("e2e_request_latency_seconds", "Arrival to last token.", _REQUEST_BUCKETS)
QUEUE_TIME = _histogram("request_queue_time_seconds", "Arrival to first step.", _TTFT_BUCKETS)
NUM_RUNNING = _gauge("num_requests_running", "Sequences in the running batch.")
NUM_WAITING = _gauge("num_requests_waiting", "Sequences waiting to be scheduled.")
KV_USAGE = _gauge("kv_cache_usage_ratio", "Share of KV blocks held by sequences.")
PREFIX_QUERIES = _counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
PREFIX_HITS = _counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
PARTIAL_HITS = _counter(
    "prefix_cache_partial_hits", "Of those, tokens of blocks that gave only their beginning."
)
PREEMPTIONS = _counter("num_preemptions", "Sequences preempted.")
PROMPT_TOKENS = _counter("prompt_tokens", "Prompt tokens of finished requests.")
GENERATION_TOKENS = _counter("generation_tokens", "Tokens generated.")
REQUESTS_FINISHED = _counter("request_success", "Sequences finished.", "finished_reason")
WEIGHT_LOAD_BYTES = _counter("weight_load_bytes", "Bytes of weights read from checkpoints.")
WEIGHT_LOAD_SECONDS = _counter(
    "weight_load_seconds",
    "Time of loading weights from checkpoints: whole, and while reads, transforms or both went on.",
    "phase",
)
EXPERT_MEAN_TOKENS = _counter(
    "moe_expert_mean_tokens", "Tokens that an expert of the layer got in the mean.", "layer"
)
EXPERT_MAX_TOKENS = _counter(
    "moe_expert_max_tokens",
    "Tokens that the busiest expert of the layer got, added up over stretches of steps. Over the "
    "mean it is the layer's imbalance; sums over layers give the model's.",
    "layer",
)
TIER_RESTORED = _counter("kv_tier_restored_blocks", "KV blocks restored to the device.", "tier")
TIER_RESTORE_SECONDS = _counter("kv_tier_restore_seconds", "Time of restoring them.", "tier")
TIER_STORED = _counter("kv_tier_stored_blocks", "KV blocks stored by the engine.", "tier")
TIER_NOT_STORED = _counter(
    "kv_tier_not_stored_blocks", "KV blocks left out because too many waited.", "tier"
)
TIER_MISMATCHES = _counter(
    "kv_tier_mismatches", "KV blocks that were not what the tier had said.", "tier"
)
PREFETCHES_ASKED = _counter(
    "kv_prefetches_asked", "Hot prefixes that the Master wanted copied here."
)
PREFETCHES_MADE = _counter("kv_prefetches_made", "Of those, prefixes that tiers had blocks of.")
PREFETCHED_BLOCKS = _counter("kv_prefetched_blocks", "KV blocks that they brought.")

ALL_METRICS = (
    TTFT, ITL, TPOT, E2E, QUEUE_TIME, NUM_RUNNING, NUM_WAITING, KV_USAGE, PREFIX_QUERIES,
    PREFIX_HITS, PARTIAL_HITS, PREEMPTIONS, PROMPT_TOKENS, GENERATION_TOKENS, REQUESTS_FINISHED,
    WEIGHT_LOAD_BYTES, WEIGHT_LOAD_SECONDS, EXPERT_MEAN_TOKENS, EXPERT_MAX_TOKENS, TIER_RESTORED,
    TIER_RESTORE_SECONDS, TIER_STORED, TIER_NOT_STORED, TIER_MISMATCHES, PREFETCHES_ASKED,
    PREFETCHES_MADE, PREFETCHED_BLOCKS,
)  # fmt: skip


class MetricsSink(Protocol):
    """Where measurements go. Called from the engine's thread; must not block."""

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str] = ...) -> None:
        """Advance a counter."""
        ...

    def set(self, metric: Metric, value: float) -> None:
        """Set a gauge."""
        ...

    def observe(self, metric: Metric, value: float) -> None:
        """Add one value to a histogram."""
        ...


class _Figure:
    """A counter or a gauge: label values → number."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        # One without labels is there from the start.
        self.values: dict[tuple[str, ...], float] = {} if metric.labels else {(): 0.0}

    def family(self) -> CounterMetricFamily | GaugeMetricFamily:
        """As the Prometheus library renders it."""
        is_counter = self._metric.kind is MetricKind.COUNTER
        make = CounterMetricFamily if is_counter else GaugeMetricFamily
        family = make(PREFIX + self._metric.name, self._metric.help, labels=self._metric.labels)
        for labels, value in list(self.values.items()):
            family.add_metric(labels, value)
        return family


class _Histogram:
    """How many observations fell into each bucket, and their sum."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._bounds = [*map(str, metric.buckets), "+Inf"]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._metric.buckets, value)] += 1
        self._sum += value

    def family(self) -> HistogramMetricFamily:
        """As the Prometheus library renders it: buckets add up."""
        buckets = list(zip(self._bounds, accumulate(self._counts), strict=True))
        family = HistogramMetricFamily(PREFIX + self._metric.name, self._metric.help)
        family.add_metric((), buckets, self._sum)
        return family


class PrometheusSink(Collector):
    """Keeps every figure in plain numbers and renders them as Prometheus text when asked.

    Measuring is a few instructions, for it happens with every token. One thread measures; another
    may render meanwhile.
    """

    def __init__(self) -> None:
        self._figures = {
            m.name: _Figure(m) for m in ALL_METRICS if m.kind is not MetricKind.HISTOGRAM
        }
        self._histograms = {
            m.name: _Histogram(m) for m in ALL_METRICS if m.kind is MetricKind.HISTOGRAM
        }
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str] | None = None) -> None:
        values = self._figures[metric.name].values
        key = tuple(labels[name] for name in metric.labels) if labels else ()
        values[key] = values.get(key, 0.0) + amount

    def set(self, metric: Metric, value: float) -> None:
        self._figures[metric.name].values[()] = value

    def observe(self, metric: Metric, value: float) -> None:
        self._histograms[metric.name].observe(value)

    def collect(self) -> Iterator[PrometheusFamily]:
        """For the registry."""
        yield from (figure.family() for figure in self._figures.values())
        yield from (histogram.family() for histogram in self._histograms.values())

    def render(self) -> str:
        """The Prometheus text format."""
        return generate_latest(self._registry).decode()


class TeeSink:
    """Hands every measurement to several sinks."""

    def __init__(self, *sinks: MetricsSink) -> None:
        self._sinks = sinks

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str] | None = None) -> None:
        for sink in self._sinks:
            sink.add(metric, amount, labels or {})

    def set(self, metric: Metric, value: float) -> None:
        for sink in self._sinks:
            sink.set(metric, value)

    def observe(self, metric: Metric, value: float) -> None:
        for sink in self._sinks:
            sink.observe(metric, value)
