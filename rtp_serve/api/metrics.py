"""The HTTP edge's own figures. The engine's come from the engine."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rtp_serve.observability.metrics import E2E, PREFIX


class HttpMetrics:
    """Requests by route and status; labels are bounded, and tenants are not among them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            PREFIX + "http_requests",
            "HTTP requests answered; 499 is a client that left.",
            ("route", "status"),
            registry=self._registry,
        )
        self._duration = Histogram(
            PREFIX + "http_request_duration_seconds",
            "Arrival to the last byte of the answer.",
            ("route",),
            buckets=E2E.buckets,
            registry=self._registry,
        )
        self._in_progress = Gauge(
            PREFIX + "http_requests_in_progress",
            "HTTP requests being served.",
            registry=self._registry,
        )

    def start(self) -> None:
        self._in_progress.inc()

    def finish(self, route: str, status: int, seconds: float) -> None:
        """Count a request once it is over, however it ended."""
        self._in_progress.dec()
        self._requests.labels(route=route, status=status).inc()
        self._duration.labels(route=route).observe(seconds)

    def render(self) -> str:
        """The Prometheus text format."""
        return generate_latest(self._registry).decode()
