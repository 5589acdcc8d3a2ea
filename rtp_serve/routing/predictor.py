"""How long a prefill takes on a worker, learned from those that it has done.

    seconds = a + b · new + c · new · (context + new / 2)

`new` tokens are computed after `context` tokens; the last product is what attention reads. Each
worker has its own (a, b, c), fitted by recursive least squares on relative errors, so that a prompt
of 100 tokens counts as much as one of 100,000. Old samples fade, and one that is far off (a worker
that was put aside for a while) moves the fit no further than a plausible one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rtp_serve.routing.types import Floats, Ints, PrefillPoint

_SCALE = 1024.0
"""Tokens of one unit, so that coefficients are of one order."""

_NUM_TERMS = 3

_PRIOR_VARIANCE = 100.0
"""In relative errors squared: the first samples decide."""

_MAX_VARIANCE = 1e3
"""Of a coefficient. Without a limit, forgetting makes it grow while samples say nothing new."""


_Terms = tuple[float, float, float]

_Symmetric = tuple[float, float, float, float, float, float]
"""A 3 × 3 matrix by rows, without what is below its diagonal."""

_NO_COVARIANCE: _Symmetric = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class PredictorSettings:
    """How a predictor learns."""

    forgetting: float = 0.995
    """Weight of a sample after the next one has come, in (0, 1]."""

    clip: float = 4.0
    """A residual counts as so many typical ones at most."""

    floor_s: float = 0.002
    """Added to a prediction before errors are taken relative to it."""

    default_tokens_per_s: float = 4096.0
    """Of a worker of which nothing is known, in a fleet of which nothing is known."""


class PrefillPredictor:
    """Of all workers, by slot."""

    def __init__(self, max_slots: int, settings: PredictorSettings | None = None) -> None:
        self._settings = settings or PredictorSettings()
        self._coefficients: list[_Terms] = [(0.0, 0.0, 0.0)] * max_slots
        # The same of single tokens, none below zero, [max_slots] each, for predictions of many.
        self.base_s: Floats = np.zeros(max_slots)
        self.token_s: Floats = np.zeros(max_slots)
        self.attention_s: Floats = np.zeros(max_slots)
        self._covariances: list[_Symmetric] = [_NO_COVARIANCE] * max_slots
        self._deviations = [0.0] * max_slots  # typical relative residuals
        self._num_samples = [0] * max_slots

    def start(self, slot: int, benchmark: Iterable[PrefillPoint] = ()) -> None:
        """A worker begins: with its own measurements, or with what others need on average."""
        points = tuple(benchmark)
        known = [
            self._coefficients[i]
            for i, count in enumerate(self._num_samples)
            if count and i != slot
        ]
        if known and not points:  # equal workers that measured themselves must look equal
            a, b, c = (sum(terms) / len(known) for terms in zip(*known, strict=True))
            self._coefficients[slot] = a, b, c
        else:
            self._coefficients[slot] = (0.0, _SCALE / self._settings.default_tokens_per_s, 0.0)
        self._floor(slot)
        self._covariances[slot] = _diagonal(_PRIOR_VARIANCE)
        self._deviations[slot] = 0.0
        self._num_samples[slot] = 0
        for point in points:
            self._learn(slot, point, clipped=False)

    def learn(self, slot: int, point: PrefillPoint) -> None:
        """A prefill was done."""
        self._learn(slot, point, clipped=True)

    def predict(self, slots: Ints, num_new_tokens: Ints, num_context_tokens: Ints) -> Floats:
        """Seconds, [n] like the arguments. Never negative."""
        seconds: Floats = np.multiply(num_new_tokens, 0.5, dtype=np.float64)
        seconds += num_context_tokens
        seconds *= self.attention_s.take(slots)
        seconds += self.token_s.take(slots)
        seconds *= num_new_tokens
        seconds += self.base_s.take(slots)
        return seconds

    def predict_one(self, slot: int, num_new_tokens: int, num_context_tokens: int) -> float:
        """As `predict`, of one worker."""
        a, b, c = (max(each, 0.0) for each in self._coefficients[slot])
        new, context = num_new_tokens / _SCALE, num_context_tokens / _SCALE
        return float(a + new * (b + c * (context + new / 2)))

    def coefficients(self, slot: int) -> tuple[float, float, float]:
        """(a, b, c) for units of 1,024 tokens, and whatever their signs."""
        return self._coefficients[slot]

    def restore(self, slot: int, coefficients: tuple[float, float, float]) -> None:
        """Go on from what another predictor had learned."""
        self.start(slot)
        self._coefficients[slot] = coefficients
        self._floor(slot)
        self._covariances[slot] = _diagonal(0.01 * _PRIOR_VARIANCE)
        self._num_samples[slot] = 1

    def _learn(self, slot: int, point: PrefillPoint, *, clipped: bool) -> None:
        # Three terms: written out, it takes a fifth of what arrays of three would.
        settings = self._settings
        new, context = point.num_new_tokens / _SCALE, point.num_context_tokens / _SCALE
        predicted = self.predict_one(slot, point.num_new_tokens, point.num_context_tokens)
        weight = 1.0 / (settings.floor_s + (predicted if clipped else point.duration_s))
        x, y, z = weight, new * weight, new * (context + new / 2) * weight
        a, b, c = self._coefficients[slot]
        residual = point.duration_s * weight - (x * a + y * b + z * c)
        if clipped:
            residual = self._clip(slot, residual)
        xx, xy, xz, yy, yz, zz = self._covariances[slot]
        px, py, pz = xx * x + xy * y + xz * z, xy * x + yy * y + yz * z, xz * x + yz * y + zz * z
        denominator = settings.forgetting + x * px + y * py + z * pz
        step = residual / denominator
        self._coefficients[slot] = a + px * step, b + py * step, c + pz * step
        self._floor(slot)
        xx, yy, zz = (
            xx - px * px / denominator,
            yy - py * py / denominator,
            zz - pz * pz / denominator,
        )
        grown = 1.0 if xx + yy + zz >= _NUM_TERMS * _MAX_VARIANCE else 1 / settings.forgetting
        self._covariances[slot] = (
            xx * grown,
            (xy - px * py / denominator) * grown,
            (xz - px * pz / denominator) * grown,
            yy * grown,
            (yz - py * pz / denominator) * grown,
            zz * grown,
        )
        self._num_samples[slot] += 1

    def _floor(self, slot: int) -> None:
        a, b, c = self._coefficients[slot]
        self.base_s[slot] = max(a, 0.0)
        self.token_s[slot] = max(b, 0.0) / _SCALE
        self.attention_s[slot] = max(c, 0.0) / _SCALE**2

    def _clip(self, slot: int, residual: float) -> float:
        """Bound it by the typical one, and make what is left count for what is typical."""
        typical = self._deviations[slot]
        if typical:
            limit = self._settings.clip * max(typical, 0.02)
            residual = min(max(residual, -limit), limit)
        self._deviations[slot] = (
            typical + 0.05 * (abs(residual) - typical) if typical else (abs(residual))
        )
        return residual


def _diagonal(value: float) -> _Symmetric:
    return value, 0.0, 0.0, value, 0.0, value
