"""Whom a decode replica asks for a prompt."""

import pytest

from deployments.kv_transfer.peers import ANYBODY, Peers
from deployments.live_replicas import LiveReplicas
from rtp_serve.disaggregation.breaker import Breaker, BreakerLimits
from rtp_serve.disaggregation.choice import ChoiceReason


@pytest.fixture
def live() -> LiveReplicas:
    return LiveReplicas()


@pytest.fixture
def peers(live: LiveReplicas) -> Peers:
    return Peers(live, Breaker(BreakerLimits(max_failures=1, half_life_s=5, probe_s=10)))


def test_serve_picks_before_it_has_told_who_there_is(peers: Peers):
    assert peers.obstacle(0) is None
    assert peers.choose((), 0) == ANYBODY
    assert peers.choose(("a",), 0) is None


def test_the_one_with_the_least_to_do_is_asked(peers: Peers, live: LiveReplicas):
    live.tell(frozenset("ab"))
    peers.begun("a", 100)
    peers.begun("b", 50)
    assert peers.choose((), 0) == "b"
    peers.begun("b", 100)
    assert peers.choose((), 0) == "a"
    peers.ended("b", 100)
    assert peers.choose((), 0) == "b"


def test_nobody_is_asked_twice_for_one_prompt(peers: Peers, live: LiveReplicas):
    live.tell(frozenset("ab"))
    assert peers.choose(("a",), 0) == "b"
    assert peers.choose(("a", "b"), 0) is None
    assert peers.obstacle(0) is None


def test_one_that_fails_is_left_alone_and_the_others_are_not(peers: Peers, live: LiveReplicas):
    live.tell(frozenset("ab"))
    peers.failed("a", 0)
    assert [peers.choose((), 1) for _ in range(20)] == ["b"] * 20
    assert peers.obstacle(1) is None
    peers.failed("b", 1)
    assert peers.obstacle(1) is ChoiceReason.CIRCUIT_OPEN
    assert peers.choose((), 1) is None
    peers.succeeded("a")
    assert peers.choose((), 1) == "a"


def test_without_prefill_replicas_there_is_nobody_to_ask(peers: Peers, live: LiveReplicas):
    live.tell(frozenset("a"))
    live.tell(frozenset())
    assert peers.obstacle(0) is ChoiceReason.NO_PREFILL_REPLICA
    assert peers.choose((), 0) is None
