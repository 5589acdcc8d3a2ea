"""Golden decisions: the same numbers, and whom each policy takes."""

from random import Random
from typing import Any

import numpy as np
import pytest

from rtp_serve.errors import ConfigError
from rtp_serve.routing.policies.registry import POLICIES, make_policy
from rtp_serve.routing.types import Candidates, WorkerId
from tests.unit.routing.requests import make_request


def make_candidates(
    wait_s: list[float], cached: list[int], queued: list[int] | None = None, **fields: Any
) -> Candidates:
    """Of a prompt of 1,000 tokens, at 1,000 tokens a second."""
    count = len(wait_s)
    values: dict[str, Any] = {
        "worker_ids": tuple(WorkerId(f"w{i}") for i in range(count)),
        "slots": np.arange(count),
        "wait_s": np.array(wait_s, np.float64),
        "prefill_s": 1.0 - np.array(cached) / 1000,
        "load_s": np.zeros(count),
        "num_cached_tokens": np.array(cached),
        "num_in_flight": np.array(queued or [0] * count),
        "num_decoding": np.zeros(count, np.int64),
        "free_fraction": np.ones(count),
        "num_tokens": 1000,
        "num_remote_tokens": max(cached),
        "mean_prefill_s": 1.0,
    }
    return Candidates(**values | fields)


def chosen(policy: str, candidates: Candidates, **knobs: float) -> int:
    return make_policy(policy, knobs).choose(make_request(), candidates, Random(0)).position


def test_round_robin_goes_round_and_past_who_is_gone():
    policy, rng = make_policy("round-robin"), Random(0)
    three = make_candidates([0, 0, 0], [0, 0, 900])
    without_1 = make_candidates([0, 0], [0, 0], slots=np.array([0, 2]))
    slots = [
        int(each.slots[policy.choose(make_request(), each, rng).position])
        for each in (three, three, three, three, without_1, without_1, three)
    ]
    assert slots == [0, 1, 2, 0, 2, 0, 1]


def test_power_of_two_takes_the_shorter_queue_and_never_the_longest():
    policy, rng = make_policy("power-of-two"), Random(0)
    candidates = make_candidates([0, 0, 0], [0, 0, 0], queued=[5, 1, 3])
    taken = [policy.choose(make_request(), candidates, rng).position for _ in range(200)]
    assert set(taken) == {1, 2}
    assert taken.count(1) > taken.count(2)


def test_affinity_goes_to_the_prefix_until_queues_differ_too_much():
    close = make_candidates([0, 0], [0, 900], queued=[0, 3])
    assert chosen("prefix-affinity", close, imbalance_requests=4) == 1
    assert chosen("prefix-affinity", close, imbalance_requests=2) == 0


def test_affinity_does_without_a_prefix_that_is_short():
    candidates = make_candidates([0, 0], [0, 90], queued=[0, 3])
    assert chosen("prefix-affinity", candidates, match_ratio=0.1) == 0
    assert chosen("prefix-affinity", candidates, match_ratio=0.05) == 1


def test_shortest_ttft_leaves_the_prefix_for_a_moment():
    assert chosen("shortest-ttft", make_candidates([0.0, 0.95], [0, 900])) == 0
    assert chosen("shortest-ttft", make_candidates([0.0, 0.85], [0, 900])) == 1


def test_the_weighted_score_weighs():
    candidates = make_candidates([0.0, 1.9], [0, 900])  # 1.0 s and 2.0 s
    assert chosen("weighted-score", candidates, alpha=1, gamma=1) == 1
    assert chosen("weighted-score", candidates, alpha=0.5, gamma=1) == 0


def test_the_price_of_a_miss_grows_with_the_queues():
    light = make_candidates([0.0, 1.2], [0, 900])
    heavy = make_candidates([8.0, 9.2], [0, 900])
    assert chosen("priced", light, fleet_price=0.1, queue_price=0.2) == 0
    assert chosen("priced", heavy, fleet_price=0.1, queue_price=0.2) == 1


def test_a_long_line_elsewhere_makes_no_miss_dearer():
    candidates = make_candidates([0.0, 1.2, 80.0], [0, 900, 0])
    assert chosen("priced", candidates, fleet_price=0.1, queue_price=0.2) == 0


def test_a_miss_where_nobody_waits_costs_its_own_time_alone():
    knobs = {"fleet_price": 100.0, "queue_price": 100.0}
    assert chosen("priced", make_candidates([0.0, 0.95], [0, 900]), **knobs) == 0
    assert chosen("priced", make_candidates([0.0, 0.85], [0, 900]), **knobs) == 1


def test_a_miss_is_priced_by_the_shortest_line_of_all_too():
    lines = make_candidates([0.5, 1.6], [0, 900]), make_candidates([0.5, 1.6, 0.0], [0, 900, 0])
    knobs = {"fleet_price": 1.0, "queue_price": 0.0}
    assert [chosen("priced", each, **knobs) for each in lines] == [1, 2]
    assert chosen("priced", lines[0], fleet_price=0.0, queue_price=0.0) == 0


def test_the_exponent_spares_short_lines_and_charges_long_ones():
    lines = make_candidates([0.3, 1.3], [0, 900]), make_candidates([3.0, 5.5], [0, 900])
    knobs = {"fleet_price": 0.0, "queue_price": 0.5}
    assert [chosen("priced", each, **knobs, queue_power=1.0) for each in lines] == [1, 0]
    assert [chosen("priced", each, **knobs, queue_power=2.0) for each in lines] == [0, 1]


def test_a_prompt_is_kept_from_where_many_decode():
    candidates = make_candidates([0, 0.1], [0, 0], num_decoding=np.array([20, 0]))
    assert chosen("priced", candidates, decode_price=0.0) == 0
    assert chosen("priced", candidates, decode_price=0.02) == 1


def test_a_lower_tier_costs_its_load_time():
    candidates = make_candidates([0, 0], [900, 900], load_s=np.array([0.3, 0.0]))
    assert chosen("priced", candidates) == 1


def test_a_tie_goes_to_the_emptier_cache():
    candidates = make_candidates([0, 0, 0], [0, 0, 0], free_fraction=np.array([0.2, 0.9, 0.5]))
    assert chosen("priced", candidates) == 1


def test_of_idle_workers_each_gets_as_much_to_compute():
    policy = make_policy("priced")
    idle = make_candidates([0, 0, 0], [0, 0, 0])
    seen = make_candidates([0, 0, 0], [0, 900, 0])
    taken = [
        policy.choose(make_request(), each, Random(0)).position
        for each in [idle, seen, *[idle] * 4]
    ]
    assert taken == [0, 1, 2, 1, 0, 2]


@pytest.mark.parametrize("name", list(POLICIES))
def test_every_policy_says_why_and_by_which_costs(name: str):
    candidates = make_candidates([0.0, 2.0, 5.0], [0, 500, 900])
    choice = make_policy(name).choose(make_request(), candidates, Random(0))
    assert choice.reason
    assert choice.costs[choice.position] == choice.costs.min()


def test_an_unknown_policy_or_knob_is_an_error():
    with pytest.raises(ConfigError, match="did you mean 'priced'"):
        make_policy("price")
    with pytest.raises(ConfigError, match="alpha"):
        make_policy("priced", {"alpha": 1.0})
