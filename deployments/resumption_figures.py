"""How often streams lost their replica, and how long their clients waited for the next token."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from deployments.journal import EngineFailed
from deployments.live_replicas import ReplicaWithdrawn
from deployments.token_stream.streams import ChannelLost
from rtp_serve.errors import RtpServeError
from rtp_serve.observability.metrics import PREFIX

_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)


class ResumptionFigures:
    """An ingress's own, by reason: `channel_lost`, `engine_failed`, `drained`, `call_failed`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._resumed = Counter(
            PREFIX + "resumed_streams",
            "Times that a stream lost its replica and went on at another one.",
            ("reason",),
            registry=self._registry,
        )
        self._dropped = Counter(
            PREFIX + "dropped_streams",
            "Streams that lost their replica and ended with an error.",
            ("reason",),
            registry=self._registry,
        )
        self._seconds = Histogram(
            PREFIX + "time_to_resume_seconds",
            "Loss of a stream's replica to the next token from another one.",
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def resumed(self, loss: RtpServeError, seconds: float) -> None:
        self._resumed.labels(reason=_reason(loss)).inc()
        self._seconds.observe(seconds)

    def dropped(self, loss: RtpServeError) -> None:
        self._dropped.labels(reason=_reason(loss)).inc()

    def render(self) -> str:
        """The Prometheus text format."""
        return generate_latest(self._registry).decode()


def _reason(loss: RtpServeError) -> str:
    match loss:
        case ChannelLost():
            return "channel_lost"
        case EngineFailed():
            return "engine_failed"
        case ReplicaWithdrawn():
            return "drained"
    return "call_failed"
