"""Numbers of repeated runs → one number and its spread. Pure arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over its repetitions."""

    median: float
    low: float
    high: float
    num_samples: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        if self.num_samples == 1:
            return short(self.median)
        return f"{short(self.median)} ({short(self.low)}–{short(self.high)}, n={self.num_samples})"


def percentile(values: Sequence[float], percent: float) -> float:
    """Linearly interpolated between the nearest ranks, as numpy does; of at least one value."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def paired_ratios(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Ours / theirs of each repetition that both have."""
    return [ours[each] / theirs[each] for each in sorted(ours.keys() & theirs.keys())]


def short(value: float) -> str:
    """Four significant digits, without an exponent."""
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 6)}f}"
