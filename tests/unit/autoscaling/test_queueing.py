from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtp_serve.autoscaling.queueing import Traffic, WaitLimit, servers_needed

RATES = st.floats(0.01, 40.0)
TIMES = st.floats(0.01, 2.0)
WAITS = st.floats(0.01, 10.0)
SQUARES = st.floats(0.1, 50.0)


def needed(traffic: Traffic, wait_s: float, miss: float = 0.05) -> int:
    return servers_needed(traffic, [WaitLimit(1.0, wait_s)], miss, 10_000)[0]


def test_one_server_is_m_m_1():
    _, late = servers_needed(Traffic(0.5, 1.0), [WaitLimit(1.0, 4.0)], 0.99, 1)
    assert late == pytest.approx(0.5 * exp(-0.5 * 4.0))


def test_several_servers_are_erlang_c():
    # 10 erlangs on 12 servers: 44.94 % wait (tables of Erlang's C).
    _, late = servers_needed(Traffic(10.0, 1.0), [WaitLimit(1.0, 0.0)], 0.45, 12)
    assert late == pytest.approx(0.4494, abs=5e-4)


def test_nothing_needs_nothing():
    assert needed(Traffic(0.0, 1.0), 1.0) == 0


def test_what_cannot_be_kept_takes_the_most():
    found, late = servers_needed(Traffic(100.0, 1.0), [WaitLimit(1.0, 1.0)], 0.05, 8)
    assert (found, late) == (8, 1.0)


@given(RATES, RATES, TIMES, WAITS, SQUARES)
def test_more_arrivals_need_no_fewer(
    rate: float, more: float, service_s: float, wait_s: float, square: float
):
    few, many = (Traffic(each, service_s, square) for each in (rate, rate + more))
    assert needed(few, wait_s) <= needed(many, wait_s)


@given(RATES, TIMES, WAITS, SQUARES, SQUARES)
def test_more_dispersion_needs_no_fewer(
    rate: float, service_s: float, wait_s: float, square: float, more: float
):
    even, uneven = (Traffic(rate, service_s, each) for each in (square, square + more))
    assert needed(even, wait_s) <= needed(uneven, wait_s)


@given(RATES, TIMES, WAITS, WAITS)
def test_a_looser_target_needs_no_more(rate: float, service_s: float, wait_s: float, more: float):
    traffic = Traffic(rate, service_s)
    assert needed(traffic, wait_s + more) <= needed(traffic, wait_s)


@given(RATES, TIMES, WAITS)
def test_there_are_more_servers_than_are_busy(rate: float, service_s: float, wait_s: float):
    traffic = Traffic(rate, service_s)
    assert needed(traffic, wait_s) > traffic.offered
