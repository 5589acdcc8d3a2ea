"""The pins of an arena, beside its file: what the next owner of the index is to keep.

    ARENA.pins    every pin; a new file each time, written by the index's owner alone

It is replaced whole, so that there is never half of one. What is not there or not ours is no pins;
blocks that are gone are nobody's business. Times are on the node's monotonic clock, with which the
arena's memory begins and ends.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rtp_serve.kv_cache.block import BlockHash

_MAX_BYTES = 64 << 20

_log = logging.getLogger(__name__)


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """One owner's, of one block."""

    owner: str
    key: bytes
    expires_s: float | None
    """None never expires."""

    @property
    def block(self) -> BlockHash:
        return BlockHash(self.key)


class PinFile:
    """Of one arena."""

    def __init__(self, arena: Path) -> None:
        self._path, self._draft = _paths(arena)

    def read(self) -> list[Pin]:
        """The pins of the index before this one, in the order in which they were set."""
        try:
            with open(self._path, "rb", opener=_open_own) as file:
                return msgspec.msgpack.decode(file.read(_MAX_BYTES), type=list[Pin])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("pins are not taken over: %s: %s", self._path, error)
            return []

    def write(self, pins: Sequence[Pin]) -> None:
        """Instead of those before. Where that fails they end with this process, and the log says
        so."""
        try:
            self._draft.unlink(missing_ok=True)  # of an owner that died
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(self._draft, flags, 0o600), "wb") as file:
                file.write(msgspec.msgpack.encode(pins))
            self._draft.rename(self._path)
        except OSError as error:
            _log.warning("pins will not outlive the store: %s", error)


def _open_own(path: str, flags: int) -> int:
    """The directory is everybody's: another user's file is refused."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError("it is another user's")
    return descriptor


def remove_pins(arena: Path) -> None:
    """The arena is nobody's any more."""
    for path in _paths(arena):
        path.unlink(missing_ok=True)


def _paths(arena: Path) -> tuple[Path, Path]:
    """Of the file, and of one that is being written."""
    return arena.with_suffix(".pins"), arena.with_suffix(".pins-draft")
