"""The simulator against what queueing theory says of one worker."""

from itertools import pairwise
from random import Random

import pytest

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.simulation.engine_model import EngineModel
from rtp_serve.simulation.fleet import SimulatedFleet
from rtp_serve.simulation.requests import TracedRequest

SERVICE_S = 0.5
MODEL = EngineModel(prefill_base_s=0.0, prefill_token_s=0.001, prefill_attention_s=0.0)


def waits_of(load: float, count: int, seed: int) -> tuple[list[float], list[float]]:
    """Simulated waits, and the arrivals."""
    rng, now, arrivals = Random(seed), 0.0, []
    for _ in range(count):
        now += rng.expovariate(load / SERVICE_S)
        arrivals.append(now)
    requests = (TracedRequest(at, 500, 1, ()) for at in arrivals)
    served = SimulatedFleet(RoutingConfig(), [MODEL], Random(0)).play(requests)
    return (served.ttft_s - SERVICE_S).tolist(), arrivals


def test_a_wait_is_what_is_left_of_the_one_before():
    waits, arrivals = waits_of(0.8, 500, seed=1)
    expected, wait = [0.0], 0.0
    for before, at in pairwise(arrivals):
        wait = max(0.0, wait + SERVICE_S - (at - before))
        expected.append(wait)
    assert waits == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_the_mean_wait_is_that_of_poisson_arrivals_and_equal_services(load: float):
    """Pollaczek–Khinchine: load · service / (2 · (1 − load))."""
    waits, _ = waits_of(load, 40_000, seed=3)
    expected = load * SERVICE_S / (2 * (1 - load))
    assert sum(waits) / len(waits) == pytest.approx(expected, rel=0.02)
