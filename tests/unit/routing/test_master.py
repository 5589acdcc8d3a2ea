from collections import Counter
from random import Random
from typing import Any

import pytest

from rtp_serve.config.routing import RoutingConfig
from rtp_serve.routing.block_stream import BlockDelta, StreamOutcome, Tier
from rtp_serve.routing.ledger import RequestState
from rtp_serve.routing.master import Master
from rtp_serve.routing.types import Decision, Outcome, Prefilled, PrefillPoint, Role, WorkerId
from tests.unit.routing.requests import keys, make_request, make_status

BENCHMARK = (PrefillPoint(100, 0, 0.1), PrefillPoint(1000, 0, 1.0), PrefillPoint(1000, 999, 1.0))
"""1,000 tokens a second."""


def make_master(*statuses: Any, **config: Any) -> Master:
    """Without statuses: two idle workers."""
    master = Master(RoutingConfig(**config), Random(0))
    for status in statuses or (
        make_status("w0", self_benchmark=BENCHMARK),
        make_status("w1", self_benchmark=BENCHMARK),
    ):
        master.on_status(status, 0.0)
    return master


def test_requests_that_come_at_once_are_split_evenly_over_idle_replicas():
    master = make_master()
    decisions = [master.schedule(make_request(f"r{i}", 100), 0.0) for i in range(20)]
    assert Counter(each.worker_id for each in decisions) == {"w0": 10, "w1": 10}


def test_a_prefix_draws_requests_and_a_decision_says_so():
    master = make_master()
    master.on_delta(BlockDelta("w1", 1, 0, 1, keys(*range(4))))
    decision = master.schedule(make_request(num_tokens=100, block_hashes=keys(*range(6))), 0.0)
    assert (decision.outcome, decision.worker_id) == (Outcome.ROUTED, "w1")
    assert decision.num_cached_tokens == 64
    assert decision.predicted_ttft_s == pytest.approx(0.036, rel=0.1)
    assert [each.worker_id for each in decision.table()] == ["w1", "w0"]


def test_what_was_sent_draws_the_same_prefix_before_it_is_computed():
    master = make_master()
    hashes = keys(*range(62))
    first = master.schedule(make_request("a", 1000, block_hashes=hashes), 0.0)
    second = master.schedule(make_request("b", 1000, block_hashes=hashes), 0.9)
    assert second.worker_id == first.worker_id
    assert second.num_cached_tokens == 62 * 16
    assert master.cached_blocks(hashes) == {}


def test_at_least_one_token_is_left_to_compute():
    master = make_master()
    master.on_delta(BlockDelta("w0", 1, 0, 1, keys(*range(4))))
    decision = master.schedule(make_request(num_tokens=64, block_hashes=keys(*range(4))), 0.0)
    assert decision.num_cached_tokens == 63


def test_a_first_token_and_an_end_leave_nothing_behind():
    master = make_master()
    request = make_request("a", 100, block_hashes=keys(*range(6)))
    decision = master.schedule(request, 0.0)
    assert decision.worker_id == "w0"
    point = PrefillPoint(100, 0, 0.1)
    master.on_status(make_status("w0", prefilled=(Prefilled("a", point),), running_ids=("a",)), 0.1)
    master.on_status(make_status("w0", finished_ids=("a",)), 0.2)
    master.check_invariants()
    repeated = master.schedule(make_request("a", 100, block_hashes=keys(*range(6))), 0.3)
    assert repeated.predicted_ttft_s == pytest.approx(0.1, rel=0.1)


def test_a_worker_that_restarts_loses_its_requests_and_its_blocks():
    master = make_master()
    master.on_delta(BlockDelta("w0", 1, 0, 1, keys("a")))
    decision = master.schedule(make_request("r", 16, block_hashes=keys("a")), 0.0)
    assert decision.worker_id == "w0"
    assert master.on_status(make_status("w0", epoch=2), 1.0) == ("r",)
    assert master.cached_blocks(keys("a")) == {}
    assert master.on_status(make_status("w0", epoch=1), 1.1) == ()
    master.check_invariants()


def test_the_first_blocks_of_a_worker_that_restarted_come_before_its_status():
    master = make_master()
    master.on_delta(BlockDelta("w0", 1, 0, 1, keys("a")))
    assert master.on_delta(BlockDelta("w0", 2, 0, 1, keys("b"))) is StreamOutcome.APPLIED
    master.on_status(make_status("w0", epoch=2), 0.1)
    assert master.cached_blocks(keys("a")) == {}
    assert master.cached_blocks(keys("b")) == {"w0": 1}
    assert master.on_delta(BlockDelta("w0", 2, 1, 2, keys("c"))) is StreamOutcome.APPLIED
    master.check_invariants()


def test_a_request_has_ended_where_it_is_and_nowhere_else():
    master = make_master(
        make_status("p0", role=Role.PREFILL, self_benchmark=BENCHMARK),
        make_status("d0", role=Role.DECODE),
    )
    master.schedule(make_request("a", 100), 0.0)
    point = PrefillPoint(100, 0, 0.1)
    computed = make_status(
        "p0", role=Role.PREFILL, prefilled=(Prefilled("a", point),), finished_ids=("a",)
    )
    assert master.on_status(computed, 0.1) == ()
    assert master.num_in_flight == 1
    master.on_status(make_status("d0", role=Role.DECODE, finished_ids=("a",)), 0.2)
    assert master.num_in_flight == 0
    master.check_invariants()


def pair(switched: Role = Role.DECODE) -> Master:
    """Prefill workers p0 and p1, of which p1 may have switched, and a decode worker d0."""
    return make_master(
        make_status("p0", role=Role.PREFILL, self_benchmark=BENCHMARK),
        make_status("p1", role=switched, self_benchmark=BENCHMARK),
        make_status("d0", role=Role.DECODE, self_benchmark=BENCHMARK),
    )


def test_a_worker_that_switches_to_decode_ends_what_it_computes_and_gets_no_prompts_more():
    master = pair(Role.PREFILL)
    sent = [master.schedule(make_request(name, 100), 0.0) for name in "ab"]
    assert {each.worker_id for each in sent} == {"p0", "p1"}
    (at_p1,) = (each.request_id for each in sent if each.worker_id == "p1")
    later = make_status("p1", role=Role.DECODE, waiting_ids=(at_p1,))
    assert master.on_status(later, 0.05) == ()
    decisions = [master.schedule(make_request(f"r{i}", 100), 0.1) for i in range(6)]
    assert {each.worker_id for each in decisions} == {"p0"}
    assert {each.decode_worker_id for each in decisions} == {"p1", "d0"}
    point = PrefillPoint(100, 0, 0.1)
    computed = make_status("p1", role=Role.DECODE, prefilled=(Prefilled(at_p1, point),))
    assert master.on_status(computed, 0.1) == ()
    assert master.is_in_flight(at_p1)
    master.on_status(make_status("d0", role=Role.DECODE, finished_ids=(at_p1,)), 0.2)
    assert not master.is_in_flight(at_p1)
    master.check_invariants()


def test_a_worker_that_switches_keeps_its_blocks_and_what_is_known_of_its_speed():
    master = pair()
    hashes = keys(*range(4))
    assert master.on_delta(BlockDelta("p1", 1, 0, 1, hashes)) is StreamOutcome.APPLIED
    request = make_request("a", 100, block_hashes=keys(*range(6)))
    assert master.schedule(request, 0.0).worker_id == "p0"  # the only one that takes prompts
    slow = PrefillPoint(1000, 0, 8.0)
    for i in range(40):
        report = make_status("p1", role=Role.DECODE, prefilled=(Prefilled(f"x{i}", slow),))
        master.on_status(report, 0.1)
    master.on_status(make_status("p1", role=Role.PREFILL), 0.2)
    assert master.cached_blocks(hashes) == {"p1": 4}
    again = make_request("b", 100, block_hashes=hashes, excluded=frozenset({WorkerId("p0")}))
    decision = master.schedule(again, 100.0)
    assert (decision.worker_id, decision.num_cached_tokens) == ("p1", 64)
    cold = make_request("c", 1000, excluded=frozenset({WorkerId("p0")}))
    assert master.schedule(cold, 200.0).predicted_ttft_s > 4  # it began with one second
    master.check_invariants()


def test_a_worker_that_switches_to_prefill_keeps_its_streams_until_they_have_gone():
    master = pair(Role.DECODE)
    sent = [master.schedule(make_request(name, 100), 0.0) for name in "ab"]
    (at_p1,) = (each.request_id for each in sent if each.decode_worker_id == "p1")
    report = make_status("p0", role=Role.PREFILL, prefilled=(Prefilled(at_p1, None),))
    master.on_status(report, 0.1)
    running = make_status("p1", role=Role.PREFILL, running_ids=(at_p1,), num_free_blocks=900)
    assert master.on_status(running, 0.2) == ()
    assert master.is_in_flight(at_p1)
    decision = master.schedule(make_request("c", 100), 0.3)
    assert decision.decode_worker_id == "d0"
    assert master.on_status(make_status("p1", role=Role.PREFILL), 0.4) == (at_p1,)
    master.check_invariants()


def test_a_successor_has_the_roles_of_the_moment():
    master = pair(Role.DECODE)
    master.on_status(make_status("p1", role=Role.PREFILL), 0.1)
    successor = Master.restored(RoutingConfig(), Random(0), master.snapshot(0.2), 0.2)
    decision = successor.schedule(make_request("a", excluded=frozenset({WorkerId("p0")})), 0.3)
    assert (decision.worker_id, decision.decode_worker_id) == ("p1", "d0")


def test_a_request_that_was_moved_has_not_ended_where_it_was():
    master = make_master()
    decision = master.schedule(make_request("a", 100, excluded=frozenset({"w0"})), 0.0)
    assert decision.worker_id == "w1"
    master.on_status(make_status("w0", finished_ids=("a",)), 0.1)
    assert master.num_in_flight == 1


def test_a_worker_that_drops_a_request_is_found_out():
    master = make_master()
    master.schedule(make_request("r"), 0.0)
    master.on_status(make_status("w0", waiting_ids=("r",)), 0.1)
    assert master.on_status(make_status("w0"), 0.2) == ("r",)


def test_a_request_that_never_arrived_is_given_up():
    master = make_master(transit_timeout_s=2)
    master.schedule(make_request("r"), 0.0)
    assert master.expire(1.0) == {}
    assert master.expire(3.0) == {"r": RequestState.LOST}
    master.check_invariants()


def test_a_silent_worker_gets_nothing_until_it_speaks():
    master = make_master(make_status("w0"), worker_silence_s=5)
    master.expire(6.0)
    assert master.schedule(make_request("a"), 6.0).outcome is Outcome.NO_WORKER
    master.on_status(make_status("w0"), 7.0)
    assert master.schedule(make_request("b"), 7.0).worker_id == "w0"


def test_a_retry_goes_to_another_worker():
    master = make_master()
    excluded = frozenset({WorkerId("w0")})
    assert master.schedule(make_request(excluded=excluded), 0.0).worker_id == "w1"


def test_a_worker_without_memory_is_passed_over():
    master = make_master(make_status("w0", num_blocks=10), make_status("w1"))
    request = make_request(num_tokens=200)
    assert master.schedule(request, 0.0).worker_id == "w1"


def test_memory_that_is_promised_is_not_promised_again():
    master = make_master(
        make_status("p", role=Role.PREFILL),
        *(make_status(f"d{i}", role=Role.DECODE, num_blocks=20) for i in range(2)),
    )
    decisions = [master.schedule(make_request(f"r{i}", 200), 0.0) for i in range(3)]
    assert [each.worker_id for each in decisions] == ["p", "p", None]
    assert [each.decode_worker_id for each in decisions] == ["d0", "d1", None]
    assert "no decode worker has 14 blocks free" in decisions[2].reason
    master.on_finished("r0", 1.0)
    assert master.schedule(make_request("r3", 200), 1.0).decode_worker_id == "d0"


def test_a_decode_worker_that_misses_the_itl_target_is_the_last_resort():
    master = make_master(
        make_status("p", role=Role.PREFILL),
        make_status("slow", role=Role.DECODE, itl_s=0.2),
        make_status("full", role=Role.DECODE, itl_s=0.02, num_free_blocks=30),
        slo_classes={"default": {"itl_s": 0.05}},
    )
    chosen = [master.schedule(make_request(f"r{i}", 200), 0.0).decode_worker_id for i in range(2)]
    assert chosen == ["full", "full"]
    assert master.schedule(make_request("big", 600), 0.0).decode_worker_id == "slow"


def test_a_worker_nobody_knows_is_asked_for_all_its_blocks():
    master = make_master()
    outcome = master.on_delta(BlockDelta("new", 1, 0, 1, keys("a")))
    assert outcome is StreamOutcome.NEEDS_SNAPSHOT


def test_a_worker_that_leaves_takes_its_requests_with_it_and_its_place_is_free():
    master = make_master(max_workers=2)
    master.on_delta(BlockDelta("w0", 1, 0, 1, keys("a")))
    master.schedule(make_request("r", 16, block_hashes=keys("a")), 0.0)
    assert master.remove(WorkerId("w0"), 1.0) == ("r",)
    master.on_status(make_status("w2"), 1.0)
    assert master.cached_blocks(keys("a")) == {}
    master.check_invariants()


SLO = {"default": {"ttft": [{"max_tokens": 500, "ttft_s": 1.0}, {"ttft_s": 4.0}]}}


def test_a_request_that_would_be_late_is_refused_at_once():
    master = make_master(slo_classes=SLO, admission={"fair_slack": 1})
    for number in range(8):
        assert master.schedule(make_request(f"r{number}", 400), 0.0).outcome in Outcome
    decision = master.schedule(make_request("late", 400), 0.0)
    assert decision.outcome is Outcome.REJECTED
    assert "are allowed" in decision.reason
    assert 0 < decision.retry_after_s < 2
    assert master.schedule(make_request("long", 900), 0.0).outcome is Outcome.ROUTED


def test_each_class_has_its_own_targets():
    classes = SLO | {"batch": {"ttft": [{"ttft_s": 60.0}]}, "none": {}}
    master = make_master(slo_classes=classes, admission={"fair_slack": 1})
    for number in range(8):
        master.schedule(make_request(f"r{number}", 400), 0.0)

    def decide(name: str) -> Decision:
        return master.schedule(make_request(name, 400, slo_class=name), 0.0)

    late = decide("default")
    assert (late.outcome, late.slo_class) == (Outcome.REJECTED, "default")
    assert "in class 'default'" in late.reason
    for name in ("batch", "none"):
        decision = decide(name)
        assert (decision.outcome, decision.slo_class) == (Outcome.ROUTED, name)


def test_who_comes_back_after_the_time_that_he_was_told_is_taken():
    master = make_master(slo_classes=SLO, admission={"fair_slack": 1})
    while True:
        decision = master.schedule(make_request(f"r{master.num_in_flight}", 400), 0.0)
        if decision.outcome is Outcome.REJECTED:
            break
    again = master.schedule(make_request("again", 400), decision.retry_after_s + 1e-6)
    assert again.outcome is Outcome.ROUTED


def test_urgent_requests_are_taken_where_others_are_not():
    master = make_master(slo_classes=SLO, admission={"fair_slack": 1})
    for number in range(4):
        master.schedule(make_request(f"r{number}", 400), 0.0)
    assert master.schedule(make_request("a", 400), 0.0).outcome is Outcome.REJECTED
    assert master.schedule(make_request("b", 400, priority=20), 0.0).outcome is Outcome.REJECTED
    assert master.schedule(make_request("c", 400, priority=90), 0.0).outcome is Outcome.ROUTED


def test_a_tenant_above_its_share_is_refused_before_the_others():
    master = make_master(slo_classes=SLO)
    for number in range(5):
        master.schedule(make_request(f"r{number}", 400, tenant="greedy"), 0.0)
    master.schedule(make_request("first", 100, tenant="modest"), 0.0)
    greedy = master.schedule(make_request("g", 400, tenant="greedy"), 0.0)
    modest = master.schedule(make_request("m", 400, tenant="modest"), 0.0)
    assert (greedy.outcome, modest.outcome) == (Outcome.REJECTED, Outcome.ROUTED)


def host_delta(store: str, *names: object) -> BlockDelta:
    return BlockDelta(store, 1, 0, 1, keys(*names), tier=Tier.HOST)


def test_a_nodes_memory_is_reached_in_the_time_that_it_takes():
    workers = [make_status(f"w{i}", store=f"n{i}", self_benchmark=BENCHMARK) for i in range(2)]
    master = make_master(*workers, tiers={"host_tokens_per_s": 10_000})
    master.on_delta(host_delta("n1", *range(62)))
    request = make_request(num_tokens=1000, block_hashes=keys(*range(62)))
    decision = master.schedule(request, 0.0)
    assert (decision.worker_id, decision.num_cached_tokens) == ("w1", 992)
    loads = {each.worker_id: each.load_s for each in decision.table()}
    assert loads == {"w0": 0.0, "w1": pytest.approx(0.0992)}


def test_what_is_computed_sooner_than_restored_is_computed():
    worker = make_status("w0", store="n0", self_benchmark=BENCHMARK)
    master = make_master(worker, tiers={"host_tokens_per_s": 500})
    master.on_delta(host_delta("n0", *range(62)))
    request = make_request(num_tokens=1000, block_hashes=keys(*range(62)))
    assert master.schedule(request, 0.0).num_cached_tokens == 0


def test_a_store_goes_with_the_last_worker_that_shares_it():
    workers = [make_status(f"w{i}", store="n0", self_benchmark=BENCHMARK) for i in range(2)]
    master = make_master(*workers, max_workers=2)
    master.on_delta(host_delta("n0", *range(62)))
    master.remove(WorkerId("w0"), 0.0)
    request = make_request(num_tokens=1000, block_hashes=keys(*range(62)))
    assert master.schedule(request, 0.0).num_cached_tokens == 992
    master.remove(WorkerId("w1"), 0.0)
    assert master.tier_positions("n0") == {}
    for number in range(5):
        status = make_status("w2", number + 1, store=f"n{number + 1}")
        master.on_status(status, 0.0)
        master.remove(WorkerId("w2"), 0.0)
    master.check_invariants()


def test_a_successor_decides_as_the_master_would_have():
    master = make_master()
    hashes = keys(*range(6))
    master.on_delta(BlockDelta("w1", 1, 0, 1, hashes))
    for number in range(3):
        master.schedule(make_request(f"r{number}", 300), 5.0)
    snapshot = master.snapshot(5.0)
    successor = Master.restored(RoutingConfig(), Random(0), snapshot, 105.0)
    successor.check_invariants()
    request = make_request("next", 100, block_hashes=hashes)
    mine, its = master.schedule(request, 5.01), successor.schedule(request, 105.01)
    assert (its.worker_id, its.num_cached_tokens) == (mine.worker_id, mine.num_cached_tokens)
    assert its.predicted_ttft_s == pytest.approx(mine.predicted_ttft_s, rel=0.01)


def test_a_successor_follows_on_and_knows_a_gap_when_it_sees_one():
    master = make_master()
    master.on_delta(BlockDelta("w0", 1, 0, 1, keys("a")))
    master.on_delta(BlockDelta("w1", 1, 0, 1, keys("a")))
    successor = Master.restored(RoutingConfig(), Random(0), master.snapshot(0.0), 0.0)
    assert successor.on_delta(BlockDelta("w0", 1, 1, 2, keys("b"))) is StreamOutcome.APPLIED
    assert successor.on_delta(BlockDelta("w1", 1, 2, 3, keys("b"))) is StreamOutcome.NEEDS_SNAPSHOT


def test_what_a_predecessor_sent_is_forgotten_when_nobody_speaks_of_it():
    master = make_master()
    master.schedule(make_request("r", 400), 0.0)
    successor = Master.restored(RoutingConfig(), Random(0), master.snapshot(0.0), 0.0)
    assert successor.num_in_flight == 1
    successor.expire(RoutingConfig().transit_timeout_s + 1)
    assert successor.num_in_flight == 0
    successor.check_invariants()
