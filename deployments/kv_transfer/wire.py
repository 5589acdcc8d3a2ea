"""What travels between decode and prefill replicas: the control call and its record (on handles),
the frames (on channels). Everything is msgpack with a schema."""

import msgspec

from deployments.channels.address import ChannelAddress, Secret
from deployments.channels.framing import decoded
from deployments.token_stream.wire import (
    Delta,
    NeedsTcp,
    Refused,
    StreamKey,
    pack_delta,
    unpack_delta,
)
from rtp_serve.disaggregation.protocol import (
    FIRST_TOKEN_TAG,
    Abort,
    Accepted,
    Failed,
    Heartbeat,
    MemoryDescriptor,
    Ready,
    Received,
    TransferKey,
)
from rtp_serve.engine.request import Request, SequenceDelta

VERSION = 1


class PrefillCall(msgspec.Struct, frozen=True):
    """The control call: compute this prompt and its first token, and tell what is ready there."""

    address: ChannelAddress
    key: TransferKey
    request: Request
    """To its first token."""

    num_blocks_present: int
    """From the chain's beginning: these are not wanted."""

    layout_digest: str
    """Of the caller's memory; blocks must be held alike."""

    timeout_s: float
    """What is left of the request's time."""

    lease_s: float


class PrefillEnded(msgspec.Struct, frozen=True, tag="ended"):
    """The record of an attempt: what state it ended in, and why if it came to nothing."""

    state: str
    code: str | None = None


PrefillRecord = PrefillEnded | NeedsTcp | Refused


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first frame of a channel, from the prefill replica, which dials."""

    secret: Secret
    replica: str
    memory: MemoryDescriptor
    version: int = VERSION


class FirstToken(msgspec.Struct, frozen=True, array_like=True, tag=FIRST_TOKEN_TAG):
    """The prompt's first token, as a delta of the request."""

    key: TransferKey
    delta: Delta
    last_layer_s: float
    """When the prompt's last layer was computed, by the sender's monotonic clock: which is the
    receiver's on one node."""


class PrefillLoad(msgspec.Struct, frozen=True, array_like=True):
    """What a prefill replica knows of its times."""

    token_s: float
    """What a prompt's token costs there; 0 while that is not known."""

    num_tokens_behind: int
    """Tokens that it has yet to compute."""


class Taken(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """From the prefill replica: its engine has taken the request, which may wait there."""

    key: TransferKey
    load: PrefillLoad


FromPrefill = Hello | Taken | Accepted | Ready | FirstToken | Failed | Heartbeat
FromDecode = Received | Abort | Heartbeat

_NO_STREAM = StreamKey(0, 0)

_encoder = msgspec.msgpack.Encoder()
_call_decoder = msgspec.msgpack.Decoder(PrefillCall)
_record_decoder: msgspec.msgpack.Decoder[PrefillRecord] = msgspec.msgpack.Decoder(PrefillRecord)
_from_prefill: msgspec.msgpack.Decoder[FromPrefill] = msgspec.msgpack.Decoder(FromPrefill)
_from_decode: msgspec.msgpack.Decoder[FromDecode] = msgspec.msgpack.Decoder(FromDecode)


def encode(message: PrefillCall | PrefillRecord | FromPrefill | FromDecode) -> bytes:
    return _encoder.encode(message)


def decode_call(data: bytes) -> PrefillCall:
    return decoded(_call_decoder, data)


def decode_record(data: bytes) -> PrefillRecord:
    return decoded(_record_decoder, data)


def decode_from_prefill(data: bytes) -> FromPrefill:
    return decoded(_from_prefill, data)


def decode_from_decode(data: bytes) -> FromDecode:
    return decoded(_from_decode, data)


def pack_first(key: TransferKey, delta: SequenceDelta, last_layer_s: float) -> FirstToken:
    return FirstToken(key, pack_delta(_NO_STREAM, delta), last_layer_s)


def unpack_first(request_id: str, first: FirstToken) -> SequenceDelta:
    return unpack_delta(request_id, first.delta)
