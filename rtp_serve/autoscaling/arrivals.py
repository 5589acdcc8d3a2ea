"""Arrivals of a role in periods of time: rate, forecast, dispersion, mix of lengths."""

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from math import exp

_MIN_SPAN_S = 1e-3


@dataclass(frozen=True, slots=True)
class Period:
    """What came in one period."""

    end_s: float
    span_s: float
    counts: tuple[float, ...]
    """By TTFT bucket."""
    tokens: tuple[float, ...]

    @property
    def count(self) -> float:
        return sum(self.counts)

    @property
    def num_tokens(self) -> float:
        return sum(self.tokens)


class Arrivals:
    """Of one role. The forecast is Holt's, level and trend of tokens a second, with time constants
    in place of weights, as periods differ (C. C. Holt 1957, D. J. Wright 1986)."""

    def __init__(self, level_s: float, trend_s: float, memory_s: float) -> None:
        self._level_s, self._trend_s, self._memory_s = level_s, trend_s, memory_s
        self._periods: deque[Period] = deque()
        self._level = 0.0
        self._trend = 0.0

    def add(self, period: Period) -> None:
        periods = self._periods
        periods.append(period)
        while periods[0].end_s <= period.end_s - self._memory_s:
            periods.popleft()
        span = max(_MIN_SPAN_S, period.span_s)
        expected = self._level + self._trend * span
        weight = 1 - exp(-span / self._level_s)
        level = expected + weight * (period.num_tokens / span - expected)
        slope_weight = 1 - exp(-span / self._trend_s)
        self._trend += slope_weight * ((level - self._level) / span - self._trend)
        self._level = max(0.0, level)

    def forecast(self, ahead_s: float) -> float:
        """Tokens a second in so many seconds. A falling trend is not followed: that there is less
        load is believed when it is so."""
        return self._level + max(0.0, self._trend) * ahead_s

    def recent(self, span_s: float) -> Period:
        """All of the last `span_s`, or of what is remembered."""
        if not self._periods:
            return Period(0.0, 0.0, (), ())
        last = self._periods[-1]
        found = [each for each in self._periods if each.end_s > last.end_s - span_s]
        width = max(len(each.counts) for each in found)
        return Period(
            last.end_s,
            sum(each.span_s for each in found),
            tuple(sum(each.counts[i] for each in found if each.counts) for i in range(width)),
            tuple(sum(each.tokens[i] for each in found if each.tokens) for i in range(width)),
        )

    @property
    def dispersion(self) -> float:
        """Variance of counts over their mean, which is the squared coefficient of variation of
        independent inter-arrival times; 1 of a Poisson process, or while little is known.

        The variance is that of successive differences (J. von Neumann 1941), so that a change of
        the rate is no variance.
        """
        counts = [each.count for each in self._periods if each.counts]
        mean = sum(counts) / len(counts) if counts else 0.0
        if len(counts) < 8 or mean <= 0:
            return 1.0
        squares = sum((b - a) ** 2 for a, b in pairwise(counts))
        return max(0.1, squares / (2 * (len(counts) - 1)) / mean)
