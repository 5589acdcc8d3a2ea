"""Which peers are asked."""

import pytest

from rtp_serve.disaggregation.breaker import Breaker, BreakerLimits, Circuit

LIMITS = BreakerLimits(max_failures=3, half_life_s=5.0, probe_s=10.0)


def make_open(now_s: float = 0.0) -> Breaker:
    breaker = Breaker(LIMITS)
    for _ in range(3):
        assert breaker.may_try("p", now_s)
        breaker.failed("p", now_s)
    return breaker


def test_failures_in_a_row_open_it_for_that_peer_alone():
    breaker = make_open()
    assert not breaker.may_try("p", 4.9)
    assert breaker.may_try("q", 0.0)


def test_many_that_fail_at_once_are_one_reason_to_wait():
    breaker = make_open()
    for _ in range(100):
        breaker.failed("p", 0.0)
    assert breaker.may_try("p", 5.0)


def test_failures_far_apart_do_not():
    breaker = Breaker(LIMITS)
    for time_s in range(0, 100, 5):
        breaker.failed("p", time_s)
        assert breaker.may_try("p", time_s)


def test_one_request_tries_first():
    breaker = make_open()
    assert breaker.circuit("p", 5.0) is Circuit.HALF_OPEN
    assert breaker.may_try("p", 5.0)
    assert not breaker.may_try("p", 5.1)
    breaker.succeeded("p")
    assert breaker.circuit("p", 5.2) is Circuit.CLOSED


def test_a_failed_probe_opens_it_as_long_again():
    breaker = make_open()
    assert breaker.may_try("p", 5.0)
    breaker.failed("p", 6.0)
    assert not breaker.may_try("p", 8.0)
    assert breaker.may_try("p", 12.0)


def test_a_probe_that_says_nothing_does_not_close_the_way_for_good():
    breaker = make_open()
    assert breaker.may_try("p", 5.0)
    assert not breaker.may_try("p", 14.9)
    assert breaker.may_try("p", 15.0)


def test_success_forgets_failures():
    breaker = Breaker(LIMITS)
    for _ in range(10):
        breaker.failed("p", 0.0)
        breaker.failed("p", 0.0)
        breaker.succeeded("p")
        assert breaker.circuit("p", 0.0) is Circuit.CLOSED


@pytest.mark.parametrize("num_peers", [100])
def test_peers_that_are_gone_are_forgotten(num_peers: int):
    breaker = Breaker(LIMITS)
    for peer in range(num_peers):
        breaker.failed(f"p{peer}", 0.0)
    breaker.failed("last", 100.0)
    assert len(breaker) == 1
