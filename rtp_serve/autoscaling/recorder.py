"""A replica's load, from what it sees of its requests: they come, have a first token, and end.

How long a prompt takes is not measured inside the engine but follows from these times (Lindley's
recursion, solved for the service): a prompt that came at `a` and had its first token at `d` was
served from `max(a, the first token before it)` on. That holds for one prompt after the other; of
those that are computed together the first has all of the time that they took.
"""

from dataclasses import dataclass

from rtp_serve.autoscaling.load import COUNTS, ReplicaLoad
from rtp_serve.config.routing import SloClass


@dataclass(slots=True)
class _Known:
    num_tokens: int
    bucket: int
    arrival_s: float
    first_token_s: float | None = None


class LoadRecorder:
    """Of one replica. Times are of one clock that does not go back."""

    def __init__(self, targets: SloClass, kv_capacity_tokens: int) -> None:
        self._targets = targets
        self._bounds = [each.max_tokens or float("inf") for each in targets.ttft] or [float("inf")]
        self._limits = [each.ttft_s for each in targets.ttft] or [float("inf")]
        self._capacity = kv_capacity_tokens
        self._known: dict[str, _Known] = {}
        self._arrivals = [0.0] * len(self._bounds)
        self._tokens = [0.0] * len(self._bounds)
        self._counts = dict.fromkeys(COUNTS, 0.0)
        self._last_s = 0.0  # when the latest first token came

    def arrived(self, request_id: str, num_tokens: int, now: float) -> None:
        """A request with a prompt of `num_tokens` is here."""
        bucket = next((i for i, most in enumerate(self._bounds) if num_tokens <= most), -1)
        self._known[request_id] = _Known(num_tokens, bucket, now)
        self._arrivals[bucket] += 1
        self._tokens[bucket] += num_tokens

    def first_token(self, request_id: str, now: float) -> None:
        """It has its first token; of one that is not here nothing is counted."""
        known = self._known.get(request_id)
        if known is None or known.first_token_s is not None:
            return
        known.first_token_s = now
        counts = self._counts
        service_s = max(0.0, now - max(known.arrival_s, self._last_s))
        self._last_s = now
        counts["num_served"] += 1
        counts["served_tokens"] += known.num_tokens
        counts["service_s"] += service_s
        counts["service_s_squared"] += service_s**2
        counts["num_in_time"] += now - known.arrival_s <= self._limits[known.bucket]

    def ended(self, request_id: str, num_new_tokens: int, now: float) -> None:
        """It has gone with an answer of so many tokens."""
        known = self._known.pop(request_id, None)
        if known is None:
            return
        counts = self._counts
        counts["num_gone"] += 1
        counts["num_new_tokens"] += num_new_tokens
        if known.first_token_s is None or num_new_tokens < 2:
            return
        decode_s, num_gaps = now - known.first_token_s, num_new_tokens - 1
        counts["num_ended"] += 1
        counts["num_gaps"] += num_gaps
        counts["decode_s"] += decode_s
        counts["num_smooth"] += decode_s <= (self._targets.itl_s or float("inf")) * num_gaps

    def load(self, now: float) -> ReplicaLoad:
        """Up to now."""
        waiting = [each for each in self._known.values() if each.first_token_s is None]
        return ReplicaLoad(
            **self._counts,
            num_waiting=len(waiting),
            waiting_tokens=sum(each.num_tokens for each in waiting),
            oldest_wait_s=max((now - each.arrival_s for each in waiting), default=0.0),
            num_decoding=len(self._known) - len(waiting),
            context_tokens=sum(each.num_tokens for each in self._known.values()),
            kv_capacity_tokens=self._capacity,
            num_arrivals=tuple(self._arrivals),
            arrived_tokens=tuple(self._tokens),
        )
