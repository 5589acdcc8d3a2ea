"""The decode side: what follows from what, by scenario."""

from dataclasses import replace

from rtp_serve.disaggregation.decode_transfer import DecodeTransfer
from rtp_serve.disaggregation.lifecycle import (
    Ask,
    Copy,
    DecodeState,
    Deposit,
    Forward,
    GiveUp,
    Release,
    SendAbort,
    SendReceived,
    TransferLimits,
)
from rtp_serve.disaggregation.protocol import Span, TransferCode, TransferKey

LIMITS = TransferLimits(lease_s=3.0, max_attempts=2)
DEADLINE_S = 60.0
FIRST, SECOND = TransferKey("t", 1), TransferKey("t", 2)
NUM_LAYERS = 4
PRESENT, TARGETS, SOURCES = 2, (10, 11, 12), (7, 3, 5, 4, 6)
"""Blocks 2 to 4 of the chain are wanted; the prefill replica has its blocks 0 to 4."""


def make_asked() -> DecodeTransfer:
    transfer = DecodeTransfer("t", NUM_LAYERS, DEADLINE_S, LIMITS)
    assert transfer.reserved(PRESENT, TARGETS, 0.0) == (Ask(FIRST, PRESENT),)
    return transfer


def make_receiving() -> DecodeTransfer:
    transfer = make_asked()
    assert transfer.accepted(FIRST, 0, SOURCES, 0.0) == ()
    return transfer


def copy_of(
    transfer: DecodeTransfer,
    blocks: Span = (2, 5),
    layers: Span = (0, 4),
    key: TransferKey = FIRST,
) -> Copy:
    (copy,) = transfer.ready(key, blocks, layers, 0.0)
    assert isinstance(copy, Copy)
    return copy


def test_layers_are_copied_as_they_become_ready_and_the_rest_follows():
    transfer = make_receiving()
    first = copy_of(transfer, (0, 3), (0, 2))
    assert first == Copy(FIRST, (2, 3), (5,), (10,), (0, 2))
    rest = [copy_of(transfer, (0, 3), (2, 4)), copy_of(transfer, (3, 5), (0, 4))]
    assert rest[1] == Copy(FIRST, (3, 5), (4, 6), (11, 12), (0, 4))
    assert transfer.first_token(FIRST, 1.0) == (Forward(),)
    assert transfer.copied(first, None, 1.0) == ()
    assert transfer.copied(rest[0], None, 1.0) == ()
    assert transfer.copied(rest[1], None, 1.0) == (SendReceived(FIRST), Deposit(3))
    assert transfer.state is DecodeState.DONE
    assert transfer.is_over


def test_the_first_token_is_awaited_when_the_blocks_are_here():
    transfer = make_receiving()
    assert transfer.copied(copy_of(transfer), None, 1.0) == ()
    assert transfer.state is DecodeState.RECEIVED
    assert transfer.first_token(FIRST, 1.0) == (Forward(), SendReceived(FIRST), Deposit(3))


def test_what_was_announced_is_never_copied_twice():
    """A second copy may spoil good bytes and then prove invalid."""
    transfer = make_receiving()
    copy_of(transfer, (3, 4), (1, 2))
    again = transfer.ready(FIRST, (2, 5), (0, 3), 0.0)
    assert [(copy.blocks, copy.layers) for copy in again if isinstance(copy, Copy)] == [
        ((2, 3), (0, 3)),
        ((3, 4), (0, 1)),
        ((3, 4), (2, 3)),
        ((4, 5), (0, 3)),
    ]
    assert transfer.ready(FIRST, (2, 5), (0, 3), 0.0) == ()


def test_a_lost_peer_leaves_what_is_complete_to_the_next_one():
    transfer = make_receiving()
    transfer.copied(copy_of(transfer, (2, 4)), None, 1.0)
    transfer.copied(copy_of(transfer, (4, 5), (0, 3)), None, 1.0)
    assert transfer.lost(FIRST, 2.0) == (Ask(SECOND, 4),)
    assert transfer.accepted(SECOND, 4, (9,), 2.0) == ()
    last = copy_of(transfer, (4, 5), key=SECOND)
    assert last.layers == (0, 4), "layers of one block are of one replica"
    transfer.copied(last, None, 3.0)
    assert transfer.first_token(SECOND, 3.0)[-1] == Deposit(3)


def test_a_silent_peer_is_aborted_and_its_copies_awaited():
    transfer = make_receiving()
    copy = copy_of(transfer)
    assert transfer.tick(2.9) == ()
    assert transfer.tick(3.0) == (SendAbort(FIRST),)
    assert transfer.state is DecodeState.SETTLING
    assert transfer.copied(copy, TransferCode.MISMATCH, 3.1) == (Ask(SECOND, PRESENT),)


def test_any_word_renews_the_lease_and_nothing_the_deadline():
    transfer = make_receiving()
    for second in range(1, 58):
        transfer.heard(FIRST, float(second))
        assert transfer.tick(second + 2.9) == ()
    transfer.heard(FIRST, 59.0)
    assert transfer.next_deadline_s == DEADLINE_S
    expected = (SendAbort(FIRST), Release(), GiveUp(TransferCode.TRANSFER_TIMEOUT))
    assert transfer.tick(DEADLINE_S) == expected


def test_an_old_peer_does_not_renew_the_lease_of_the_new_one():
    transfer = make_receiving()
    transfer.lost(FIRST, 1.0)
    transfer.heard(FIRST, 3.9)
    assert transfer.tick(4.0)[0] == SendAbort(SECOND)


def test_copies_of_blocks_that_were_given_back_count_for_nothing():
    transfer = make_receiving()
    first, second = copy_of(transfer, (2, 3)), copy_of(transfer, (3, 5))
    assert transfer.copied(first, TransferCode.MISMATCH, 1.0) == (SendAbort(FIRST),)
    assert transfer.copied(second, None, 1.0) == (Ask(SECOND, PRESENT),)


def test_the_last_failure_deposits_what_is_complete():
    transfer = make_receiving()
    transfer.copied(copy_of(transfer, (2, 3)), None, 1.0)
    transfer.lost(FIRST, 2.0)
    refused = transfer.failed(SECOND, TransferCode.PEER_REFUSED, 2.0)
    assert refused == (Deposit(1), GiveUp(TransferCode.PEER_REFUSED))
    assert transfer.state is DecodeState.FAILED


def test_nobody_to_ask_ends_it_before_the_last_attempt():
    transfer = make_asked()
    assert transfer.no_peer(FIRST) == (Release(), GiveUp(TransferCode.NO_PEER))


def test_with_all_blocks_here_a_lost_peer_is_no_failure():
    transfer = make_receiving()
    transfer.copied(copy_of(transfer), None, 1.0)
    assert transfer.lost(FIRST, 1.0) == (Deposit(3),)
    assert transfer.state is DecodeState.DONE
    assert not transfer.has_first_token


def test_a_cancelled_transfer_frees_its_blocks_when_the_copier_is_idle():
    transfer = make_receiving()
    copy = copy_of(transfer)
    assert transfer.cancel() == (SendAbort(FIRST),)
    assert transfer.first_token(FIRST, 1.0) == ()
    assert transfer.ready(FIRST, (2, 5), (0, 4), 1.0) == ()
    assert not transfer.is_over
    assert transfer.copied(copy, None, 1.0) == (Release(),)
    assert transfer.is_over


def test_a_reservation_that_comes_after_the_end_is_given_back():
    transfer = DecodeTransfer("t", NUM_LAYERS, DEADLINE_S, LIMITS)
    assert transfer.cancel() == ()
    assert transfer.reserved(PRESENT, TARGETS, 1.0) == (Release(),)


def test_without_a_reservation_nobody_is_asked():
    transfer = DecodeTransfer("t", NUM_LAYERS, DEADLINE_S, LIMITS)
    assert transfer.not_reserved() == (GiveUp(TransferCode.NO_RESERVATION),)


def test_at_the_deadline_the_client_does_not_wait_for_the_copier():
    transfer = make_receiving()
    copy = copy_of(transfer)
    transfer.heard(FIRST, DEADLINE_S - 1)
    expected = (SendAbort(FIRST), GiveUp(TransferCode.TRANSFER_TIMEOUT))
    assert transfer.tick(DEADLINE_S) == expected
    assert transfer.copied(copy, None, DEADLINE_S) == (Release(),)


def test_no_attempt_begins_after_the_deadline():
    transfer = make_receiving()
    expected = (Release(), GiveUp(TransferCode.PEER_LOST))
    assert transfer.lost(FIRST, DEADLINE_S) == expected


def test_the_first_token_of_a_second_attempt_is_not_sent_again():
    transfer = make_receiving()
    assert transfer.first_token(FIRST, 1.0) == (Forward(),)
    transfer.lost(FIRST, 1.0)
    assert transfer.first_token(SECOND, 2.0) == ()


def test_a_peer_that_talks_nonsense_is_left():
    for frame in (
        lambda each: each.ready(FIRST, (2, 6), (0, 4), 0.0),
        lambda each: each.ready(FIRST, (2, 5), (0, 5), 0.0),
        lambda each: each.ready(FIRST, (3, 3), (0, 4), 0.0),
        lambda each: each.ready(FIRST, (-1, 3), (0, 4), 0.0),
        lambda each: each.accepted(FIRST, 6, (1,), 0.0),
        lambda each: each.accepted(FIRST, 4, (1,), 0.0),
    ):
        transfer = make_receiving()
        assert frame(transfer) == (SendAbort(FIRST), Ask(SECOND, PRESENT))
        assert transfer.code is TransferCode.BAD_FRAME


def test_more_blocks_may_follow_without_a_gap():
    transfer = make_asked()
    assert transfer.accepted(FIRST, 2, (5,), 0.0) == ()
    assert transfer.accepted(FIRST, 3, (4, 6), 0.0) == ()
    assert copy_of(transfer).source_block_ids == (5, 4, 6)


def test_blocks_beyond_the_reservation_are_not_wanted():
    transfer = make_asked()
    transfer.accepted(FIRST, 0, (*SOURCES, 8), 0.0)
    assert copy_of(transfer, (0, 6)).blocks == (2, 5)


def test_limits_make_six_heartbeats_a_lease():
    assert replace(LIMITS, lease_s=6.0).heartbeat_s == 1.0
