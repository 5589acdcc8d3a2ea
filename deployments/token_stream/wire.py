"""What travels: the control call and its record (on handles), the frames (on channels).

Everything is msgpack with a schema. Knows neither sockets nor Ray.
"""

import msgspec

from deployments.channels.address import ChannelAddress, Secret
from deployments.channels.framing import decoded
from rtp_serve.engine.request import (
    NOTHING_CACHED,
    CachedTokens,
    FinishReason,
    Request,
    SequenceDelta,
    TokenLogprobs,
)

VERSION = 4


class StreamKey(msgspec.Struct, frozen=True, array_like=True):
    """Names one attempt at one stream of an ingress process."""

    stream: int
    attempt: int = 1


class Call(msgspec.Struct, frozen=True):
    """The control call: run this request and send its tokens there."""

    address: ChannelAddress
    key: StreamKey
    request: Request

    prefill: str = ""
    """Who should rather compute the prompt, where others do."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """The record of a stream that ran. One entry per sequence that ran, in order."""

    reasons: tuple[FinishReason, ...]
    num_tokens: tuple[int, ...]
    """Tokens generated."""

    cached: CachedTokens = NOTHING_CACHED
    """Prompt tokens found in the prefix cache."""


class NeedsTcp(msgspec.Struct, frozen=True, tag="needs_tcp"):
    """The replica is on another node and got no TCP address; nothing was started."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The replica did not run the request, or could not go on; the fields are an error's."""

    code: str
    message: str
    param: str | None = None
    retry_after_s: int = 1


Record = Finished | NeedsTcp | Refused


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first frame of a channel, from the replica."""

    secret: Secret
    replica: str
    version: int = VERSION


class Opened(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """The replica's engine has taken this stream; its tokens will come on this channel."""

    key: StreamKey


class DeltaExtras(msgspec.Struct, frozen=True, array_like=True):
    """The fields of a SequenceDelta that most deltas leave empty."""

    logprobs: tuple[TokenLogprobs, ...]
    stop_token_id: int | None
    prompt_logprobs: tuple[TokenLogprobs | None, ...]
    error: str
    fingerprint: str


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """A SequenceDelta on its way."""

    key: StreamKey
    index: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    cached: int | CachedTokens
    """A number while the device had them all, as is usual: it takes fewer bytes."""

    extras: DeltaExtras | None


class Deltas(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """What one engine step made for the streams of one channel."""

    items: tuple[Delta, ...]


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """From the ingress: nobody listens to this stream any more."""

    key: StreamKey


FromReplica = Hello | Opened | Deltas

_NO_EXTRAS = DeltaExtras((), None, (), "", "")

_encoder = msgspec.msgpack.Encoder()
_call_decoder = msgspec.msgpack.Decoder(Call)
_record_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)
_from_replica: msgspec.msgpack.Decoder[FromReplica] = msgspec.msgpack.Decoder(FromReplica)
_from_ingress = msgspec.msgpack.Decoder(Abort)


def encode(message: Call | Record | FromReplica | Abort) -> bytes:
    return _encoder.encode(message)


def decode_call(data: bytes) -> Call:
    return decoded(_call_decoder, data)


def decode_record(data: bytes) -> Record:
    return decoded(_record_decoder, data)


def decode_from_replica(data: bytes) -> FromReplica:
    return decoded(_from_replica, data)


def decode_from_ingress(data: bytes) -> Abort:
    return decoded(_from_ingress, data)


def pack_delta(key: StreamKey, delta: SequenceDelta) -> Delta:
    extras = DeltaExtras(
        delta.logprobs, delta.stop_token_id, delta.prompt_logprobs, delta.error, delta.fingerprint
    )
    cached = delta.cached
    return Delta(
        key,
        delta.index,
        delta.token_ids,
        delta.finish_reason,
        cached.total if cached.device == cached.total else cached,
        None if extras == _NO_EXTRAS else extras,
    )


def unpack_delta(request_id: str, delta: Delta) -> SequenceDelta:
    extras = delta.extras or _NO_EXTRAS
    cached = CachedTokens(delta.cached) if isinstance(delta.cached, int) else delta.cached
    return SequenceDelta(
        request_id=request_id,
        index=delta.index,
        token_ids=delta.token_ids,
        logprobs=extras.logprobs,
        finish_reason=delta.finish_reason,
        stop_token_id=extras.stop_token_id,
        num_cached_tokens=cached.total,
        num_host_tokens=cached.host,
        num_disk_tokens=cached.disk,
        num_remote_tokens=cached.remote,
        prompt_logprobs=extras.prompt_logprobs,
        error=extras.error,
        fingerprint=extras.fingerprint,
    )
