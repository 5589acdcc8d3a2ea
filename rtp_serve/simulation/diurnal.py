"""Generated traffic with days: the rate goes up and down, and is uneven within the hour."""

from dataclasses import dataclass
from math import cos, exp, log, tau
from random import Random

from rtp_serve.simulation.requests import Trace, TracedRequest


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Short days, as replicas start no slower for that. Prompts share nothing."""

    num_days: int = 2
    day_s: float = 1200.0
    low_per_s: float = 1.0
    """Requests at night."""
    high_per_s: float = 12.0
    """At noon."""
    unevenness: float = 0.4
    """Coefficient of variation of the rate from one stretch to the next."""
    stretch_s: float = 20.0
    median_tokens: int = 1500
    spread: float = 0.8
    """Standard deviation of the logarithm of prompt lengths."""
    max_tokens: int = 8000
    mean_new_tokens: float = 40.0
    block_size: int = 512


def diurnal(shape: Diurnal, rng: Random) -> Trace:
    """Arrivals are a Poisson process whose rate is a cosine of the day's time × a Gamma variate of
    each stretch."""
    requests: list[TracedRequest] = []
    order = 1 / shape.unevenness**2
    for stretch in range(int(shape.num_days * shape.day_s / shape.stretch_s)):
        start_s = stretch * shape.stretch_s
        height = (1 - cos(tau * start_s / shape.day_s)) / 2
        rate = shape.low_per_s + (shape.high_per_s - shape.low_per_s) * height
        rate *= rng.gammavariate(order, 1 / order)
        now = start_s + rng.expovariate(rate)
        while now < start_s + shape.stretch_s:
            num_tokens = exp(rng.gauss(log(shape.median_tokens), shape.spread))
            requests.append(
                TracedRequest(
                    now,
                    max(1, min(shape.max_tokens, int(num_tokens))),
                    1 + int(rng.expovariate(1 / shape.mean_new_tokens)),
                    (),
                )
            )
            now += rng.expovariate(rate)
    return Trace("diurnal", shape.block_size, tuple(requests))
