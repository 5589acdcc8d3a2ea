"""What a role's replicas have measured: arrivals, service, decoding, kept targets.

Replicas report counts since their starts; differences become periods. What was measured long ago
fades, by the number of requests since.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rtp_serve.autoscaling.arrivals import Arrivals, Period
from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.config.autoscaling import AutoscalingConfig

_MEMORY_REQUESTS = 200.0
_PRIOR_REQUESTS = 2.0
"""The configured rate counts as so many requests."""

_PRIOR_TOKENS = 1024.0


@dataclass(slots=True)
class _Faded:
    """Sums over requests that count less the longer ago they were."""

    weight: float
    tokens: float
    seconds: float
    squares: float

    def add(self, load: ReplicaLoad) -> None:
        keep = max(0.0, 1 - load.num_served / _MEMORY_REQUESTS)
        self.weight = self.weight * keep + load.num_served
        self.tokens = self.tokens * keep + load.served_tokens
        self.seconds = self.seconds * keep + load.service_s
        self.squares = self.squares * keep + load.service_s_squared


class RoleHistory:
    """Of one role."""

    def __init__(self, config: AutoscalingConfig) -> None:
        forecast = config.forecast
        self.arrivals = Arrivals(forecast.level_s, forecast.trend_s, forecast.memory_s)
        self.present = ReplicaLoad()
        """Sum over replicas; its counts are of the last period."""

        prior_s = _PRIOR_TOKENS / config.tokens_per_s
        self._service = _Faded(
            _PRIOR_REQUESTS,
            _PRIOR_REQUESTS * _PRIOR_TOKENS,
            _PRIOR_REQUESTS * prior_s,
            _PRIOR_REQUESTS * 2 * prior_s**2,
        )
        self._attained = self._ended = self._smooth = self._served = 0.0
        self._gaps = self._decode_s = self._gone = self._new_tokens = 0.0
        self._before: Mapping[str, ReplicaLoad] = {}
        self._before_s: float | None = None
        self._used_s: float | None = None
        self._first_s: float | None = None
        self.num_reporting = 0
        """Replicas in `present`."""

    def observe(self, loads: Mapping[str, ReplicaLoad], now: float) -> None:
        """All replicas that have reported, each with its latest load."""
        total = ReplicaLoad()
        for name, load in loads.items():
            total = total.plus(load.since(self._before.get(name)))
        span_s = 0.0 if self._before_s is None else now - self._before_s
        self._before, self._before_s = {**loads}, now
        self.present, self.num_reporting = total, len(loads)
        self._service.add(total)
        self._first_s = now if self._first_s is None else self._first_s
        if sum(total.num_arrivals) or total.num_waiting or total.num_decoding:
            self._used_s = now
        keep = max(0.0, 1 - total.num_served / _MEMORY_REQUESTS)
        self._served = self._served * keep + total.num_served
        self._attained = self._attained * keep + total.num_in_time
        keep = max(0.0, 1 - total.num_gone / _MEMORY_REQUESTS)
        self._ended = self._ended * keep + total.num_ended
        self._smooth = self._smooth * keep + total.num_smooth
        self._gaps = self._gaps * keep + total.num_gaps
        self._decode_s = self._decode_s * keep + total.decode_s
        self._gone = self._gone * keep + total.num_gone
        self._new_tokens = self._new_tokens * keep + total.num_new_tokens
        if span_s > 0:
            self.arrivals.add(Period(now, span_s, total.num_arrivals, total.arrived_tokens))

    def idle_s(self, now: float) -> float:
        """Since there was a request, or since the first look."""
        since_s = self._first_s if self._used_s is None else self._used_s
        return now - (now if since_s is None else since_s)

    @property
    def s_per_token(self) -> float:
        """Of prompts, what caches saved included."""
        return self._service.seconds / self._service.tokens

    @property
    def service_cv2(self) -> float:
        mean = self._service.seconds / self._service.weight
        return max(0.0, self._service.squares / self._service.weight / mean**2 - 1) if mean else 1.0

    @property
    def attained(self) -> float:
        """Share of the latest first tokens that came in time; 1 if there was none."""
        return self._attained / self._served if self._served else 1.0

    @property
    def smooth(self) -> float:
        """Share of the latest answers whose tokens came fast enough."""
        return self._smooth / self._ended if self._ended else 1.0

    @property
    def itl_s(self) -> float:
        return self._decode_s / self._gaps if self._gaps else 0.0

    @property
    def mean_new_tokens(self) -> float:
        return self._new_tokens / self._gone if self._gone else 0.0
