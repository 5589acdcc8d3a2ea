"""What the leader tells followers, and what they report. msgpack with a schema."""

from typing import Any

import msgspec
import numpy as np

from rtp_serve.engine.output import SchedulerOutput


class Step(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Compute this."""

    scheduled: SchedulerOutput


class Load(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Load the version that is at this place now beside the steps, and report."""

    model: str | None
    """None is where the last version came from."""

    revision: str | None


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Free a version that no sequence runs on any more."""

    version: int


class TakeBack(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Forget the version that was loaded last, if it has this number: it is not run."""

    version: int


class End(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """There is nothing more to do."""


Order = Step | Load | Drop | TakeBack | End


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A version is loaded."""

    namespace: bytes
    """The version's, of this rank's part."""

    content: str
    """Of this rank's part, as `model_versions.content_of` takes it."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A version could not be loaded."""

    code: str
    """Of the error, as `RtpServeError.code`."""

    message: str


Report = Loaded | Failed


def encode(message: Order | Report) -> bytes:
    return _ENCODER.encode(message)


def decode_order(data: bytes) -> Order:
    return _ORDERS.decode(data)


def decode_report(data: bytes) -> Report:
    return _REPORTS.decode(data)


def _raw(value: Any) -> bytes:
    """Arrays go as their bytes; of messages all are int32."""
    assert isinstance(value, np.ndarray), f"cannot encode {type(value)}"
    assert value.dtype == np.int32, f"cannot encode an array of {value.dtype}"
    return value.tobytes()


def _array(_: type, value: Any) -> Any:
    return np.frombuffer(value, np.int32)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_raw)
_ORDERS = msgspec.msgpack.Decoder(Order, dec_hook=_array)
_REPORTS = msgspec.msgpack.Decoder(Report)
