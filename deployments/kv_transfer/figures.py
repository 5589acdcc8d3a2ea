"""What transfers did and how long they took, of one replica."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from rtp_serve.disaggregation.protocol import TransferCode
from rtp_serve.observability.metrics import PREFIX

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class TransferFigures:
    """Counts and times."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._brought = Counter(
            PREFIX + "prefills_elsewhere",
            "Prompts that a prefill replica has computed.",
            registry=self._registry,
        )
        self._gave_up = Counter(
            PREFIX + "prefill_fallbacks",
            "Prompts that the decode replica computed after all.",
            ("reason",),
            registry=self._registry,
        )
        self._choices = Counter(
            PREFIX + "prefill_choices",
            "Prompts by who was to compute them, and why.",
            ("reason",),
            registry=self._registry,
        )
        self._bytes = Counter(
            PREFIX + "transfer_bytes",
            "Keys and values copied from prefill replicas.",
            registry=self._registry,
        )
        self._reservation = self._histogram("reservation_wait", "Wait for room for a prompt.")
        self._elsewhere = self._histogram(
            "prefill_elsewhere", "Request to the last layer of its prompt."
        )
        self._exposed = self._histogram(
            "exposed_transfer", "End of the prompt's last layer to the end of the last copy."
        )

    def watch(self, num_transfers: Callable[[], int], num_publications: Callable[[], int]) -> None:
        """What is under way, asked whenever somebody looks: prompts that others compute for this
        replica, and prompts that are held for others."""
        running = Gauge(
            PREFIX + "running_transfers",
            "Prompts that are brought from prefill replicas.",
            registry=self._registry,
        )
        running.set_function(num_transfers)
        published = Gauge(
            PREFIX + "published_prompts",
            "Prompts that are computed or held for decode replicas.",
            registry=self._registry,
        )
        published.set_function(num_publications)

    def reserved(self, wait_s: float) -> None:
        self._reservation.observe(wait_s)

    def chose(self, reason: str) -> None:
        self._choices.labels(reason=reason).inc()

    def copied(self, num_bytes: int) -> None:
        self._bytes.inc(num_bytes)

    def brought(self, seconds: float, exposed_s: float) -> None:
        self._brought.inc()
        self._elsewhere.observe(seconds)
        self._exposed.observe(exposed_s)

    def gave_up(self, code: TransferCode) -> None:
        self._gave_up.labels(reason=code.value).inc()

    def render(self) -> str:
        """The Prometheus text format."""
        return generate_latest(self._registry).decode()

    def _histogram(self, name: str, meaning: str) -> Histogram:
        return Histogram(
            f"{PREFIX}{name}_seconds", meaning, buckets=_BUCKETS, registry=self._registry
        )
