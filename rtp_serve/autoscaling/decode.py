"""How many replicas it takes to hold the KV of all requests and to keep the ITL target."""

from math import ceil

from rtp_serve.autoscaling.history import RoleHistory
from rtp_serve.config.autoscaling import AutoscalingConfig

_FORGETTING = 0.98
_MIN_SAMPLES = 5.0


class DecodeCurve:
    """ITL over sequences of a replica, `a + b · n`, by least squares; old samples fade."""

    def __init__(self) -> None:
        self._sums: tuple[float, ...] = (0.0,) * 5  # 1, n, n², itl, n · itl

    def add(self, num_decoding: float, itl_s: float) -> None:
        row = (1.0, num_decoding, num_decoding**2, itl_s, num_decoding * itl_s)
        self._sums = tuple(
            _FORGETTING * old + new for old, new in zip(self._sums, row, strict=True)
        )

    def most(self, itl_s: float) -> float | None:
        """Sequences with which a replica keeps `itl_s`; None while that is not known."""
        count, n, nn, y, ny = self._sums
        variance = nn * count - n * n
        if count < _MIN_SAMPLES or variance <= 1e-3 * nn * count:
            return None
        slope = (ny * count - n * y) / variance
        if slope <= 0:
            return None
        return max(1.0, (itl_s - (y - slope * n) / count) / slope)


class DecodeNeed:
    """From what the requests that are there hold, raised as arrivals are expected to rise."""

    def __init__(self, config: AutoscalingConfig) -> None:
        self._config = config
        self._curve = DecodeCurve()

    def replicas(self, history: RoleHistory, num_running: int) -> tuple[int, dict[str, float]]:
        """The larger of both needs, and their numbers."""
        present, num_reporting = history.present, history.num_reporting
        if not num_reporting or not present.kv_capacity_tokens:
            return 0, {}
        growth = self._growth(history)
        num_requests = present.num_waiting + present.num_decoding
        tokens = growth * (present.context_tokens + num_requests * history.mean_new_tokens)
        usable = present.kv_capacity_tokens / num_reporting * (1 - self._config.kv_headroom)
        num_kv = ceil(tokens / usable)
        numbers = {"kv_tokens": tokens, "kv_usable_tokens": usable, "growth": growth}
        num_itl, more = self._for_itl(history, growth, num_running)
        return max(num_kv, num_itl), numbers | more

    def _growth(self, history: RoleHistory) -> float:
        """Of arrivals, until a replica that is ordered now has started."""
        now = history.arrivals.forecast(0.0)
        ahead = history.arrivals.forecast(self._config.forecast.startup_s)
        return min(2.0, ahead / now) if now > 0 else 1.0

    def _for_itl(
        self, history: RoleHistory, growth: float, num_running: int
    ) -> tuple[int, dict[str, float]]:
        target_s, present = self._config.targets.itl_s, history.present
        if target_s is None or not num_running:
            return 0, {}
        if present.num_gaps:
            itl_s = present.decode_s / present.num_gaps
            self._curve.add(present.num_decoding / num_running, itl_s)
        most = self._curve.most(target_s)
        if most is None:
            return 0, {"itl_s": history.itl_s}
        needed = ceil(growth * present.num_decoding / most)
        # A curve that is far off must not multiply the fleet.
        return min(needed, 2 * num_running), {"itl_s": history.itl_s, "most_decoding": most}
