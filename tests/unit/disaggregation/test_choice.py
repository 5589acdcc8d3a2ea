"""Where a prompt is computed."""

from dataclasses import replace

import pytest

from rtp_serve.disaggregation.choice import (
    ChoicePolicy,
    ChoiceReason,
    LocalTimes,
    RemoteTimes,
)

LOCAL = LocalTimes(wait_s=0.1, prefill_s=0.5, num_running=4, itl_increase_s=0.2)
REMOTE = RemoteTimes(wait_s=0.2, prefill_s=0.4, exposed_transfer_s=0.01, round_trip_s=0.02)
POLICY = ChoicePolicy(kappa=0.5, min_tokens=32)


def test_the_sooner_first_token_wins_with_interference_priced():
    choice = POLICY.choose(512, LOCAL, REMOTE)
    assert choice.local_s == pytest.approx(1.0)
    assert choice.interference_s == pytest.approx(0.4)
    assert choice.remote_s == pytest.approx(0.63)
    assert choice.reason is ChoiceReason.REMOTE_FASTER
    assert not choice.is_local


def test_interference_is_free_while_promises_are_kept():
    choice = replace(POLICY, kappa=0.0).choose(512, LOCAL, REMOTE)
    assert (choice.reason, choice.is_local) == (ChoiceReason.LOCAL_FASTER, True)


def test_a_busy_prefill_replica_is_not_waited_for():
    busy = replace(REMOTE, wait_s=0.6)
    assert POLICY.choose(512, LOCAL, busy).reason is ChoiceReason.LOCAL_FASTER


def test_equal_times_are_local():
    even = LocalTimes(wait_s=0.0, prefill_s=1.0)
    assert POLICY.choose(512, even, RemoteTimes(0.5, 0.5)).is_local


@pytest.mark.parametrize(
    ("num_tokens", "remote", "obstacle", "reason"),
    [
        (31, REMOTE, None, ChoiceReason.TOO_SHORT),
        (32, REMOTE, None, ChoiceReason.REMOTE_FASTER),
        (512, None, None, ChoiceReason.NO_PREFILL_REPLICA),
        (512, REMOTE, ChoiceReason.CIRCUIT_OPEN, ChoiceReason.CIRCUIT_OPEN),
        (512, REMOTE, ChoiceReason.UNSUPPORTED, ChoiceReason.UNSUPPORTED),
    ],
)
def test_what_is_not_a_matter_of_time(
    num_tokens: int,
    remote: RemoteTimes | None,
    obstacle: ChoiceReason | None,
    reason: ChoiceReason,
):
    choice = POLICY.choose(num_tokens, LOCAL, remote, obstacle)
    assert choice.reason is reason
    assert choice.is_local == (reason is not ChoiceReason.REMOTE_FASTER)
