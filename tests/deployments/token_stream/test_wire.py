from collections.abc import Callable
from typing import Any

import pytest

from deployments.channels.address import ChannelAddress
from deployments.channels.framing import WireError
from deployments.token_stream.wire import (
    Abort,
    Call,
    Deltas,
    Finished,
    FromReplica,
    Hello,
    NeedsTcp,
    Opened,
    Record,
    Refused,
    StreamKey,
    decode_call,
    decode_from_ingress,
    decode_from_replica,
    decode_record,
    encode,
    pack_delta,
    unpack_delta,
)
from rtp_serve.engine.request import CachedTokens, FinishReason, SequenceDelta, TokenLogprobs
from tests.factories import make_request

SECRET = b"s" * 32
KEY = StreamKey(7, 2)


def make_call(secret: bytes = SECRET, **sampling: Any) -> Call:
    address = ChannelAddress("node", "name", secret, "127.0.0.1", 1234)
    return Call(address, KEY, make_request("r", **sampling))


def test_a_call_keeps_every_sampling_parameter():
    call = make_call(
        logit_bias={3: -1.5}, bad_words=((1, 2), (3,)), stop=("x",), seed=2**64 - 1, logprobs=5
    )
    assert decode_call(encode(call)) == call


@pytest.mark.parametrize(
    "record",
    [
        Finished((FinishReason.STOP, FinishReason.ABORT), (3, 0), CachedTokens(48, 16, 16, 16)),
        NeedsTcp(),
        Refused("overloaded", "full", None, 4),
    ],
)
def test_a_record_comes_back_as_it_was(record: Record):
    assert decode_record(encode(record)) == record


@pytest.mark.parametrize("message", [Hello(SECRET, "replica"), Opened(KEY)])
def test_a_frame_comes_back_as_it_was(message: FromReplica):
    assert decode_from_replica(encode(message)) == message


def test_an_abort_comes_back_as_it_was():
    assert decode_from_ingress(encode(Abort(KEY))) == Abort(KEY)


LOGPROBS = TokenLogprobs(5, -0.5, 1, ((5, -0.5), (6, -1.5)))


@pytest.mark.parametrize(
    "delta",
    [
        SequenceDelta("r", 0, (5,)),
        SequenceDelta("r", 1, (5, 6), (LOGPROBS,) * 2, FinishReason.STOP, 6, 32),
        SequenceDelta("r", 0, (5,), num_cached_tokens=64, num_host_tokens=32, num_disk_tokens=16),
        SequenceDelta("r", 0, (5,), num_cached_tokens=64, num_remote_tokens=64),
        SequenceDelta("r", 0, (5,), prompt_logprobs=(None, LOGPROBS)),
        SequenceDelta("r", 0, finish_reason=FinishReason.ERROR, error="broken"),
    ],
)
def test_a_delta_keeps_every_field(delta: SequenceDelta):
    frame = decode_from_replica(encode(Deltas((pack_delta(KEY, delta),))))
    assert isinstance(frame, Deltas)
    assert unpack_delta("r", frame.items[0]) == delta


def test_a_plain_token_costs_few_bytes():
    size = len(encode(Deltas((pack_delta(KEY, SequenceDelta("r", 0, (4711,))),))))
    assert size <= 16


@pytest.mark.parametrize(
    ("decode", "data"),
    [
        (decode_call, b"\xc1"),
        (decode_call, encode(NeedsTcp())),
        (decode_from_replica, encode(Abort(KEY))),
        (decode_from_ingress, encode(Opened(KEY))),
        (decode_from_replica, b""),
    ],
)
def test_bytes_outside_the_schema_are_refused(decode: Callable[[bytes], object], data: bytes):
    with pytest.raises(WireError):
        decode(data)


def test_a_short_secret_is_refused():
    with pytest.raises(WireError, match="secret"):
        decode_call(encode(make_call(secret=b"short")))
