"""Length-prefixed frames over a byte stream: u32 little-endian length, then that many bytes."""

from collections.abc import Iterator
from typing import TypeVar

import msgspec

MAX_FRAME_BYTES = 64 << 20
MAX_HELLO_BYTES = 4096

_PREFIX_BYTES = 4

T = TypeVar("T")


class WireError(Exception):
    """The peer sent what the schema does not know, or more than the limits allow."""


def frame(payload: bytes) -> bytes:
    """`payload` with its length in front. Raises WireError above MAX_FRAME_BYTES."""
    if len(payload) > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return len(payload).to_bytes(_PREFIX_BYTES, "little") + payload


class FrameReader:
    """Cuts received bytes into payloads."""

    def __init__(self, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_frame_bytes = max_frame_bytes
        """May be raised between frames, when the peer has proven who it is."""

        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each payload that `data` completes. Raises WireError for one over the limit.

        Exhaust the iterator before the next call.
        """
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _PREFIX_BYTES:
            size = int.from_bytes(self._buffer[start : start + _PREFIX_BYTES], "little")
            if size > self.max_frame_bytes:
                raise WireError(f"a frame of {size} bytes; the limit is {self.max_frame_bytes}")
            end = start + _PREFIX_BYTES + size
            if len(self._buffer) < end:
                break
            yield bytes(self._buffer[start + _PREFIX_BYTES : end])
            start = end
        del self._buffer[:start]


def decoded(decoder: "msgspec.msgpack.Decoder[T]", data: bytes) -> T:
    """A payload by its schema. Raises WireError."""
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise WireError(str(error)) from error
