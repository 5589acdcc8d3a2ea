"""What a replica says of itself to who decides how many there are.

Counts go up from the replica's start, so that a report that is lost or read twice does no harm; the
rest is the present. All are plain numbers, as Serve carries nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import sub

_ARRIVALS = "num_arrivals_of_bucket_"
_TOKENS = "arrived_tokens_of_bucket_"


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """Of one replica, or the sum of several."""

    num_served: float = 0.0
    """Requests that have had their first token."""

    served_tokens: float = 0.0
    """Of their prompts."""

    service_s: float = 0.0
    """Time that the replica took for them, without waiting."""

    service_s_squared: float = 0.0
    """Sum of the squares of it."""

    num_in_time: float = 0.0
    """Of them, those whose first token came in time."""

    num_ended: float = 0.0
    """Answers of more than a token."""

    num_smooth: float = 0.0
    """Of them, those whose tokens came fast enough."""

    num_gaps: float = 0.0
    """Between their tokens."""

    decode_s: float = 0.0
    """The gaps' sum."""

    num_new_tokens: float = 0.0
    """Of all that have ended."""

    num_gone: float = 0.0
    """Requests that have ended, well or not."""

    # -- at present --

    num_waiting: float = 0.0
    """Requests without a first token."""

    waiting_tokens: float = 0.0
    """Of their prompts."""

    oldest_wait_s: float = 0.0

    num_decoding: float = 0.0

    context_tokens: float = 0.0
    """Prompts of all requests that are there."""

    kv_capacity_tokens: float = 0.0
    """What the KV cache holds."""

    # -- by TTFT bucket, of the targets' number --

    num_arrivals: tuple[float, ...] = ()
    arrived_tokens: tuple[float, ...] = ()

    def floats(self) -> dict[str, float]:
        """For Serve's `record_autoscaling_stats`."""
        values = {name: float(getattr(self, name)) for name in _SCALARS}
        for bucket, count in enumerate(self.num_arrivals):
            values[f"{_ARRIVALS}{bucket}"] = count
            values[f"{_TOKENS}{bucket}"] = self.arrived_tokens[bucket]
        return values

    @classmethod
    def from_floats(cls, values: Mapping[str, float]) -> "ReplicaLoad":
        """What `floats` gave; names of others are passed over. Raises KeyError for missing ones."""
        num_buckets = sum(name.startswith(_ARRIVALS) for name in values)
        return cls(
            **{name: values[name] for name in _SCALARS},
            num_arrivals=tuple(values[f"{_ARRIVALS}{i}"] for i in range(num_buckets)),
            arrived_tokens=tuple(values[f"{_TOKENS}{i}"] for i in range(num_buckets)),
        )

    def plus(self, other: "ReplicaLoad") -> "ReplicaLoad":
        """Sums; of the oldest waits the older one."""
        values = {name: getattr(self, name) + getattr(other, name) for name in _SCALARS}
        values["oldest_wait_s"] = max(self.oldest_wait_s, other.oldest_wait_s)
        return ReplicaLoad(
            **values,
            num_arrivals=_added(self.num_arrivals, other.num_arrivals),
            arrived_tokens=_added(self.arrived_tokens, other.arrived_tokens),
        )

    def since(self, before: "ReplicaLoad | None") -> "ReplicaLoad":
        """Counts from `before` on, and the present. A replica that has started again counts from
        its start."""
        if before is None or sum(self.num_arrivals) < sum(before.num_arrivals):
            return self
        values = {name: getattr(self, name) for name in _SCALARS}
        for name in COUNTS:
            values[name] -= getattr(before, name)
        return ReplicaLoad(
            **values,
            num_arrivals=tuple(map(sub, self.num_arrivals, before.num_arrivals)),
            arrived_tokens=tuple(map(sub, self.arrived_tokens, before.arrived_tokens)),
        )


_SCALARS = tuple(
    each.name for each in fields(ReplicaLoad) if each.name not in ("num_arrivals", "arrived_tokens")
)
COUNTS = _SCALARS[: _SCALARS.index("num_waiting")]
"""Names of what goes up, without the buckets."""


def _added(one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))
