"""The prefill side: what follows from what, by scenario."""

from collections.abc import Callable

import pytest

from rtp_serve.disaggregation.lifecycle import (
    Bump,
    PrefillState,
    Release,
    SendAccepted,
    SendFailed,
    SendFirstToken,
    SendReady,
    StopComputing,
    TransferLimits,
)
from rtp_serve.disaggregation.prefill_transfer import PrefillTransfer
from rtp_serve.disaggregation.protocol import TransferCode, TransferKey

KEY = TransferKey("t", 1)
DEADLINE_S = 60.0
FREED = (Bump(), Release())


def make_admitted() -> PrefillTransfer:
    return PrefillTransfer(KEY, DEADLINE_S, TransferLimits(lease_s=3.0), now_s=0.0)


def make_computing() -> PrefillTransfer:
    transfer = make_admitted()
    assert transfer.got_blocks(2, [5, 6]) == (SendAccepted(KEY, 2, (5, 6)),)
    return transfer


def make_published() -> PrefillTransfer:
    transfer = make_computing()
    assert transfer.first_token() == (SendFirstToken(KEY),)
    return transfer


def test_blocks_are_held_until_the_other_side_has_them():
    transfer = make_computing()
    assert transfer.computed((2, 4), (0, 2)) == (SendReady(KEY, (2, 4), (0, 2)),)
    transfer.first_token()
    assert transfer.state is PrefillState.PUBLISHED
    assert transfer.received(KEY) == FREED
    assert transfer.state is PrefillState.RELEASED


@pytest.mark.parametrize("make", [make_computing, make_published])
def test_every_early_end_bumps_the_slot_before_blocks_are_free(make: Callable[[], PrefillTransfer]):
    stop = (StopComputing(),) if make is make_computing else ()
    assert make().aborted(KEY) == (*stop, *FREED)
    assert make().lost() == (*stop, *FREED)
    lost = SendFailed(KEY, TransferCode.PEER_LOST)
    assert make().tick(3.0) == (lost, *stop, *FREED)


def test_an_engine_that_fails_says_so():
    failed = SendFailed(KEY, TransferCode.PEER_FAILED)
    assert make_computing().engine_failed(TransferCode.PEER_FAILED) == (failed, *FREED)
    assert make_admitted().engine_failed(TransferCode.PEER_FAILED) == (failed, Bump())
    assert make_published().engine_failed(TransferCode.PEER_FAILED) == ()


def test_after_an_abort_nothing_is_told_and_late_blocks_are_free_at_once():
    transfer = make_admitted()
    assert transfer.aborted(KEY) == (StopComputing(), Bump())
    assert transfer.got_blocks(0, [1]) == (Release(),)
    assert transfer.computed((0, 1), (0, 1)) == ()
    assert transfer.first_token() == ()
    assert transfer.aborted(KEY) == ()
    assert transfer.received(KEY) == ()


def test_a_stopped_decode_replica_expires_and_a_living_one_does_not():
    transfer = make_published()
    transfer.heard(2.0)
    assert transfer.next_deadline_s == 5.0
    assert transfer.tick(4.9) == ()
    assert transfer.tick(5.0) == (SendFailed(KEY, TransferCode.PEER_LOST), *FREED)
    assert transfer.state is PrefillState.EXPIRED
    assert transfer.next_deadline_s is None


def test_the_deadline_ends_it_whatever_is_heard():
    transfer = make_published()
    transfer.heard(DEADLINE_S)
    expected = (SendFailed(KEY, TransferCode.TRANSFER_TIMEOUT), *FREED)
    assert transfer.tick(DEADLINE_S) == expected


def test_frames_of_another_epoch_are_dropped():
    transfer = make_published()
    assert transfer.received(TransferKey("t", 2)) == ()
    assert transfer.aborted(TransferKey("t", 2)) == ()
    assert transfer.state is PrefillState.PUBLISHED


def test_nothing_is_received_before_all_is_published():
    transfer = make_computing()
    assert transfer.received(KEY) == ()
    assert transfer.state is PrefillState.COMPUTING
