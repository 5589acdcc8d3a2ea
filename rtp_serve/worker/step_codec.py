"""What a tensor-parallel model's ranks are told, and what they answer, as bytes.

msgpack by the dataclasses' own fields; arrays are raw bytes of int32, little-endian. Both sides are
processes of one release: a message is not kept.
"""

from typing import Any

import msgspec
import numpy as np

from rtp_serve.engine.output import ModelOutput, SchedulerOutput

_INT32 = np.dtype("<i4")


class Execute(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Run this step."""

    scheduled: SchedulerOutput


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Release this model version."""

    version: int


class Stop(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Nothing comes after this."""


Message = Execute | Drop | Stop


def encode(message: Message | ModelOutput) -> bytes:
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """Raises msgspec.DecodeError for what `encode` has not made."""
    return _message_decoder.decode(data)


def decode_output(data: bytes) -> ModelOutput:
    """Raises msgspec.DecodeError."""
    return _output_decoder.decode(data)


def _to_bytes(value: Any) -> Any:
    assert isinstance(value, np.ndarray), f"{type(value)} is not for the wire"
    assert value.dtype == _INT32, f"an array of {value.dtype}"
    return value.tobytes()


def _to_array(_: type, data: Any) -> Any:
    return np.frombuffer(data, _INT32)


_encoder = msgspec.msgpack.Encoder(enc_hook=_to_bytes)
_message_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(
    Message, dec_hook=_to_array
)
_output_decoder = msgspec.msgpack.Decoder(ModelOutput, dec_hook=_to_array)
