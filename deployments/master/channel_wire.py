"""The frames between the Master and those who ask it; what is asked and answered is in `wire`."""

from typing import Literal

import msgspec

from deployments.channels.address import ChannelAddress, Secret
from deployments.channels.framing import decoded

VERSION = 2

Method = Literal["report", "schedule", "ended", "snapshot", "figures"]
"""Those of a MasterService that others may call."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The first frame of a channel, from who asks."""

    secret: Secret
    version: int = VERSION


class Question(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A call. Several may be open on one channel."""

    number: int | None
    """Of its answer; None of one that nobody waits for."""

    method: Method

    data: bytes


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """What the method returned."""

    number: int
    data: bytes


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The Master cannot do it, and changed nothing."""

    number: int
    reason: str


FromAsker = Hello | Question
FromMaster = Answer | Refusal

_encoder = msgspec.msgpack.Encoder()
_from_asker: msgspec.msgpack.Decoder[FromAsker] = msgspec.msgpack.Decoder(FromAsker)
_from_master: msgspec.msgpack.Decoder[FromMaster] = msgspec.msgpack.Decoder(FromMaster)
_address = msgspec.msgpack.Decoder(ChannelAddress)


def encode_frame(message: FromAsker | FromMaster | ChannelAddress) -> bytes:
    return _encoder.encode(message)


# All raise WireError.


def decode_from_asker(data: bytes) -> FromAsker:
    return decoded(_from_asker, data)


def decode_from_master(data: bytes) -> FromMaster:
    return decoded(_from_master, data)


def decode_address(data: bytes) -> ChannelAddress:
    return decoded(_address, data)
