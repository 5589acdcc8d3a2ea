"""How an ingress's requests were routed, and how soon the Master answered."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from rtp_serve.observability.metrics import PREFIX
from rtp_serve.routing.types import Outcome

_BUCKETS = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05)


class RoutingFigures:
    """An ingress's own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._decisions = Counter(
            PREFIX + "routing_decisions",
            "Decisions about attempts at requests, by who made them, the request's class, outcome "
            "and reason.",
            ("by", "slo_class", "outcome", "reason"),
            registry=self._registry,
        )
        self._fallbacks = Counter(
            PREFIX + "routing_fallbacks",
            "Attempts that were routed without the Master's answer: from its last snapshot, or by "
            "Ray Serve's router.",
            ("to", "reason"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            PREFIX + "routing_round_trip_seconds",
            "Question to the Master's answer.",
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def answered(self, seconds: float) -> None:
        self._seconds.observe(seconds)

    def decided(self, by: str, slo_class: str, outcome: Outcome, reason: str) -> None:
        """`reason` is one of few."""
        self._decisions.labels(
            by=by, slo_class=slo_class, outcome=outcome.value, reason=reason
        ).inc()

    def fell_back(self, to: str, reason: str) -> None:
        """`to` the snapshot or to Serve."""
        self._fallbacks.labels(to=to, reason=reason).inc()

    def render(self) -> str:
        """The Prometheus text format."""
        return generate_latest(self._registry).decode()
