"""Against the array operations that it replaces, bit for bit."""

import numpy as np
import pytest

from rtp_serve.native.priced import Prices, Workloads, priced
from rtp_serve.native.worker_numbers import Floats


def by_arrays(of: Workloads, mean_s: float, prices: Prices) -> tuple[Floats, list[int]]:
    work = of.prefill_s + of.load_s
    price = prices.fleet * float((of.wait_s / mean_s).min()) + prices.queue * of.crowds
    costs = of.wait_s + work
    costs += price * (work - work.min())
    costs += prices.decode * of.num_decoding * of.prefill_s
    (near,) = (costs <= costs[costs.argmin()] + 1e-9).nonzero()
    free = of.free_fraction[near]
    return costs, near[free == free.max()].tolist()


def workloads(rng: np.random.Generator, mean_s: float) -> Workloads:
    """Of few different values, so that many are equal."""
    count = int(rng.integers(1, 70))
    wait_s = rng.choice([0.0, 0.3, rng.random()], count)
    return Workloads(
        wait_s,
        prefill_s=rng.choice([0.1, rng.random(), rng.random()], count),
        load_s=rng.choice([0.0, 0.0, rng.random()], count),
        num_decoding=rng.integers(0, 3, count),
        crowds=(wait_s / mean_s) ** float(rng.choice([1.0, 1.5, 2.0])),
        free_fraction=rng.choice([-0.25, 0.5, 1.0], count),
    )


@pytest.mark.parametrize("seed", range(100))
def test_costs_and_the_least_are_those_of_array_operations(seed: int):
    rng = np.random.default_rng(seed)
    mean_s, prices = float(rng.uniform(0.01, 1.0)), Prices(*rng.uniform(0.0, 2.0, 3).tolist())
    given = workloads(rng, mean_s)
    wanted, least = by_arrays(given, mean_s, prices)
    costs = np.empty(len(wanted))
    assert priced(costs, given, mean_s, prices) == least
    assert costs.tobytes() == wanted.tobytes()


def test_no_candidates_and_unequal_lengths_are_refused():
    given = workloads(np.random.default_rng(0), 1.0)
    with pytest.raises(ValueError, match="equally long"):
        priced(np.empty(len(given.wait_s) + 1), given, 1.0, Prices(1.0, 1.0, 1.0))
    none = Workloads(*(each[:0].copy() for each in given))
    with pytest.raises(ValueError, match="not empty"):
        priced(np.empty(0), none, 1.0, Prices(1.0, 1.0, 1.0))
