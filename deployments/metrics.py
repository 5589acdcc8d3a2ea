"""Engine measurements as Ray Serve metrics.

Ray allows no colon in a name: `rtp_serve:x` becomes `rtp_serve_x`, which Ray exports as
`ray_rtp_serve_x` with the tags application, deployment and replica. Ray takes 4 µs a record, too
much for the engine's thread, so records are kept for a moment and reported by another thread.
"""

import threading
from collections import defaultdict, deque
from collections.abc import Mapping

from ray.serve.metrics import Counter, Gauge, Histogram

from rtp_serve.observability.metrics import ALL_METRICS, Metric, MetricKind

RAY_PREFIX = "rtp_serve_"

Labels = tuple[tuple[str, str], ...]

_PERIOD_S = 1.0
_MAX_KEPT = 1 << 16
# Records in one go; between two goes the engine's thread can take the GIL.
_BURST = 32


class RaySink:
    """A MetricsSink. Make it in a replica, where Serve knows its tags; `close` ends its thread."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in ALL_METRICS:
            self._create(metric)
        self._lock = threading.Lock()
        self._amounts: dict[tuple[str, Labels], float] = defaultdict(float)
        self._values: dict[str, float] = {}
        self._observations: deque[tuple[str, float]] = deque(maxlen=_MAX_KEPT)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rtp-serve-metrics", daemon=True)
        self._thread.start()

    def _create(self, metric: Metric) -> None:
        name = RAY_PREFIX + metric.name
        match metric.kind:
            case MetricKind.COUNTER:
                self._counters[metric.name] = Counter(name, metric.help, metric.labels or None)
            case MetricKind.GAUGE:
                self._gauges[metric.name] = Gauge(name, metric.help)
            case MetricKind.HISTOGRAM:
                self._histograms[metric.name] = Histogram(name, metric.help, list(metric.buckets))

    def add(self, metric: Metric, amount: float, labels: Mapping[str, str] | None = None) -> None:
        with self._lock:
            self._amounts[metric.name, tuple((labels or {}).items())] += amount

    def set(self, metric: Metric, value: float) -> None:
        with self._lock:
            self._values[metric.name] = value

    def observe(self, metric: Metric, value: float) -> None:
        self._observations.append((metric.name, value))

    def close(self) -> None:
        """Report what is left and stop."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_PERIOD_S):
            self._report()
        self._report()

    def _report(self) -> None:
        with self._lock:
            amounts, self._amounts = self._amounts, defaultdict(float)
            values, self._values = self._values, {}
        for (name, labels), amount in amounts.items():
            if amount:
                self._counters[name].inc(amount, dict(labels))
        for name, value in values.items():
            self._gauges[name].set(value, {})
        while self._observations:
            for _ in range(min(_BURST, len(self._observations))):
                name, seconds = self._observations.popleft()
                self._histograms[name].observe(seconds, {})
            self._closing.wait(0)
