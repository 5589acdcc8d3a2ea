import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtp_serve.autoscaling.fleet import FleetPlanner
from rtp_serve.autoscaling.load import ReplicaLoad
from rtp_serve.autoscaling.types import Observation, RoleSwitch
from rtp_serve.routing.types import Role
from tests.unit.autoscaling.played_roles import SERVICE_S, PlayedRole, config


def settled(rate: float, **values: object) -> int:
    role = PlayedRole(config(**values))
    return [each.num_replicas for each in role.play(rate, 30)][-1]


@given(st.floats(0, 60), st.floats(0, 60))
@settings(max_examples=10, deadline=None)
def test_more_load_gets_no_fewer_replicas(rate: float, more: float):
    assert settled(rate) <= settled(rate + more)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8), st.integers(0, 3), st.integers(3, 6))
@settings(max_examples=10, deadline=None)
def test_bounds_are_kept_whatever_comes(rates: list[float], least: int, most: int):
    role = PlayedRole(config(min_replicas=least, max_replicas=most), first=least)
    for rate in rates:
        for decision in role.play(rate, 5):
            assert least <= decision.num_replicas <= most


@given(st.floats(0.5, 50))
@settings(max_examples=10, deadline=None)
def test_an_even_load_asks_for_no_more_once_it_is_known(rate: float):
    role = PlayedRole(config(downscale_delay_s=5))
    for _ in role.play(rate, 60):
        pass
    assert not any(each.num_replicas > each.num_before for each in role.play(rate, 60))


def test_what_is_offered_fits():
    assert settled(20) > 20 * SERVICE_S


def test_up_at_once_and_down_one_by_one():
    role = PlayedRole(config(downscale_delay_s=10, downscale_step_s=2))
    most = max(each.num_replicas for each in role.play(24, 20))
    assert most >= 7
    rising = [each for each in PlayedRole(config()).play(24, 20) if each.is_change]
    assert rising[0].num_replicas - rising[0].num_before > 1
    assert rising[0].reason.startswith("arrivals")
    before = role.num_replicas
    falling = [each for each in role.play(0.1, 120) if each.is_change]
    assert [each.num_before - each.num_replicas for each in falling] == [1] * (before - 1)
    assert falling[0].reason == "1 were enough of late"


def test_what_waits_gets_replicas_before_arrivals_are_known_to_rise():
    role = PlayedRole(config())
    for _ in role.play(1, 20):
        pass
    (decision,) = role.play(1, 0.5, num_waiting=40, waiting_tokens=40_000)
    assert decision.reason.startswith("backlog")
    assert decision.numbers["backlog_s"] == pytest.approx(40 * SERVICE_S, rel=0.01)
    assert decision.num_replicas > 4


def test_held_kv_gets_replicas():
    role = PlayedRole(config(kv_headroom=0.1), Role.DECODE)
    (decision,) = role.play(
        1, 0.5, num_decoding=10, context_tokens=45_000, kv_capacity_tokens=10_000
    )
    assert decision.num_replicas == 5
    assert decision.reason.startswith("decoding")


def test_slow_tokens_get_replicas():
    role = PlayedRole(config(min_replicas=2), Role.DECODE, first=2)
    gaps = 0.0
    decode_s = 0.0
    for num_decoding in (4, 8, 12, 16, 20, 24, 60, 60):
        itl_s = 0.02 + 0.004 * num_decoding / role.num_replicas
        gaps, decode_s = gaps + 100, decode_s + 100 * itl_s
        (decision,) = role.play(
            2,
            0.5,
            num_decoding=num_decoding,
            kv_capacity_tokens=1e9,
            num_gaps=gaps,
            decode_s=decode_s,
        )
    # 20 sequences a replica keep 0.1 s, and there are 60.
    assert decision.numbers["most_decoding"] == pytest.approx(20, rel=0.05)
    assert decision.numbers["needed for decoding"] >= 3


def test_nobody_asks_and_the_last_one_goes_and_comes_back():
    role = PlayedRole(config(min_replicas=0, downscale_delay_s=5, downscale_to_zero_delay_s=30))
    for _ in role.play(1, 10):
        pass
    idle = list(role.play(0, 60))
    gone = next(each for each in idle if not each.num_replicas)
    assert idle.index(gone) * 0.5 >= 29
    assert gone.reason.startswith("nobody has asked for 30 s")
    assert role.num_replicas == 0
    (decision,) = role.play(0, 0.5, unrouted=1)
    assert (decision.num_replicas, decision.reason) == (1, "a request came to no replica")


def fleet_plan(*, switches: bool) -> tuple[list[int], tuple[RoleSwitch, ...]]:
    settled = config(downscale_delay_s=1)
    planner = FleetPlanner({Role.PREFILL: settled, Role.DECODE: settled}, switches=switches)
    idle = ReplicaLoad(num_arrivals=(0.0,), arrived_tokens=(0.0,), kv_capacity_tokens=40_000)
    full = ReplicaLoad(
        num_arrivals=(9.0,),
        arrived_tokens=(9000.0,),
        num_decoding=9,
        context_tokens=140_000,
        kv_capacity_tokens=20_000,
    )
    plan = planner.plan(
        [
            Observation(Role.PREFILL, {"p": idle}, 4, 4),
            Observation(Role.DECODE, {"d": full}, 2, 2),
        ],
        1.0,
    )
    return [each.num_replicas for each in plan.decisions], plan.switches


def test_replicas_to_spare_are_proposed_before_new_ones():
    (_, decode), (switch,) = fleet_plan(switches=False)
    assert (switch.source, switch.target, switch.num_replicas) == (Role.PREFILL, Role.DECODE, 3)
    assert decode == 8
    nums, _ = fleet_plan(switches=True)
    assert nums == [1, 8]
