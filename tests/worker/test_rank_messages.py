"""What ranks tell each other arrives as it was."""

import threading
from multiprocessing.connection import Client

import numpy as np
import pytest

from rtp_serve.engine.output import NewSequence, SchedulerOutput
from rtp_serve.engine.sampling_params import SamplingParams
from rtp_serve.errors import RankLost
from rtp_serve.worker.ranks.connections import (
    ConnectionReceiver,
    ConnectionSender,
    Switchboard,
    call,
    own_host,
)
from rtp_serve.worker.ranks.messages import (
    Drop,
    End,
    Failed,
    Load,
    Loaded,
    Order,
    Report,
    Step,
    TakeBack,
    decode_order,
    decode_report,
    encode,
)

KEY = b"k" * 32


@pytest.mark.parametrize(
    "order",
    [Load("model", None), Load(None, None), Load("a/b", "main"), Drop(3), TakeBack(2), End()],
)
def test_orders(order: Order):
    assert decode_order(encode(order)) == order


@pytest.mark.parametrize(
    "report", [Loaded(b"digest", "share"), Failed("invalid_config", "tp: why")]
)
def test_reports(report: Report):
    assert decode_report(encode(report)) == report


def test_a_step_with_everything_in_it():
    sampling = SamplingParams(
        temperature=0.5, logit_bias={7: -1.5, 3: 2.0}, bad_words=((1, 2), (3,)), logprobs=4
    )
    tokens = np.arange(5000, dtype=np.int32)
    new = NewSequence(4, tokens, 4990, (1, 2), sampling, 2**64 - 1, (9, 10), version=1)
    sent = SchedulerOutput(
        7, (4, 2), (0, 31), (5000, 1), (True, True), ((3, 4), ()), (new,), (1, 3), ((5, 3),)
    )
    step = decode_order(encode(Step(sent)))
    assert isinstance(step, Step)
    (arrived,) = step.scheduled.new_seqs
    assert arrived.token_ids.dtype == np.int32
    assert arrived.token_ids.tolist() == tokens.tolist()
    assert arrived.sampling == sampling
    assert (arrived.seq_id, arrived.seed, arrived.barred_token_ids) == (4, 2**64 - 1, (9, 10))
    assert step.scheduled.new_block_ids == sent.new_block_ids
    assert step.scheduled.finished_seq_ids == (1, 3)
    assert step.scheduled.block_copies == ((5, 3),)


def never() -> None:
    """Nobody has ended."""


def test_followers_call_in_any_order_and_both_ends_speak():
    switchboard = Switchboard("127.0.0.1", KEY, 2)
    second = call(switchboard.address, KEY, 2)
    first = call(switchboard.address, KEY, 1)
    connections = switchboard.connections(never)
    switchboard.close()
    ConnectionSender(connections).send(b"to all")
    assert ConnectionReceiver(first).receive() == ConnectionReceiver(second).receive() == b"to all"
    ConnectionSender([second]).send(b"from 2")
    assert ConnectionReceiver(connections[1]).receive() == b"from 2"
    assert own_host(first) == "127.0.0.1"
    first.close()
    with pytest.raises(RankLost):
        ConnectionReceiver(connections[0]).receive()


def test_who_does_not_know_the_key_is_nobody():
    switchboard = Switchboard("127.0.0.1", KEY, 1)
    with pytest.raises(RankLost):
        call(switchboard.address, b"x" * 32, 1)
    stranger = Client(switchboard.address, authkey=KEY)
    stranger.send_bytes(bytes([9]))  # there is no rank 9
    follower = call(switchboard.address, KEY, 1)
    (connection,) = switchboard.connections(never)
    ConnectionSender([follower]).send(b"here")
    assert ConnectionReceiver(connection).receive() == b"here"
    switchboard.close()


def test_waiting_for_followers_ends_with_their_processes():
    switchboard = Switchboard("127.0.0.1", KEY, 1)

    def check() -> None:
        raise RankLost("rank 1 has ended", 1)

    with pytest.raises(RankLost, match="rank 1"):
        switchboard.connections(check)
    switchboard.close()
    assert "rank-connections" not in {thread.name for thread in threading.enumerate()}


def test_a_leader_that_is_not_there_is_lost():
    switchboard = Switchboard("127.0.0.1", KEY, 1)
    address = switchboard.address
    switchboard.close()
    with pytest.raises(RankLost):
        call(address, KEY, 1)
