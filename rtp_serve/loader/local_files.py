"""Reads files of this machine: past the page cache, unless the page cache has them already.

Direct I/O reads at the disk's rate and leaves the page cache to others; copying from the page cache
is faster where the bytes are there. So each read asks first what is cached, which costs a system
call, and reads the rest directly. A filesystem that refuses either is read as it likes.

A disk serves all requests that it has at once, so that those that began together end together, and
while all of their threads transform what came, the disk has nothing to do. So few go to it at a
time, and it has the next one when the first of them ends.
"""

import errno
import os
import threading
from pathlib import Path
from typing import Protocol, Self

from rtp_serve.loader.read_plan import ALIGNMENT


class ReadInto(Protocol):
    """Where bytes of files come from. Called by several threads at once."""

    def __call__(self, file: Path, offset: int, into: memoryview) -> int:
        """Fill `into` with the file's bytes from `offset` on; how many there were.

        Fewer than asked for means that the file ends. Offset, length and address are multiples of
        `ALIGNMENT`. Raises OSError.
        """
        ...


_MAX_DIRECT_READS = 4
"""Under way at a time: two keep a disk busy, four even while their threads wait for a core."""


class LocalFiles:
    """Opens a file when it is first read, and closes all of them at the end of its block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._disk = threading.Semaphore(_MAX_DIRECT_READS)
        self._files: dict[Path, _LocalFile] = {}

    def __call__(self, file: Path, offset: int, into: memoryview) -> int:
        """See `ReadInto`."""
        return self._opened(file).read(offset, into)

    def has_cached(self, file: Path, offset: int, num_bytes: int) -> bool:
        """Whether the page cache seems to have these bytes. Raises OSError."""
        return self._opened(file).has_cached(offset, num_bytes)

    def _opened(self, file: Path) -> "_LocalFile":
        with self._lock:
            if file not in self._files:
                self._files[file] = _LocalFile(file, self._disk)
        return self._files[file]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()


class _LocalFile:
    """One open file, by way of the page cache and, where it can be, past it."""

    def __init__(self, path: Path, disk: threading.Semaphore) -> None:
        self._disk = disk
        self._buffered = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._num_bytes = os.fstat(self._buffered).st_size
        self._direct: int | None = None
        try:
            self._direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError:  # the filesystem has no direct I/O
            return
        # A question for a page that is not cached brings that page, and with this no other.
        os.posix_fadvise(self._buffered, 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, offset: int, into: memoryview) -> int:
        if self._direct is None:
            return _fill(self._buffered, offset, into)
        done = self._read_cached(offset, into) // ALIGNMENT * ALIGNMENT
        if done == len(into):
            return done
        try:
            with self._disk:
                return done + _fill(self._direct, offset + done, into[done:])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # The filesystem opens files for direct I/O, but does none.
        return done + _fill(self._buffered, offset + done, into[done:])

    def has_cached(self, offset: int, num_bytes: int) -> bool:
        """Whether the page cache seems to have these bytes.

        The last one is asked for alone, and then the first: a long request that misses would begin
        to fill the cache, and who read the header left the first pages there.
        """
        end = min(offset + num_bytes, self._num_bytes)
        byte = bytearray(1)
        try:
            return all(
                os.preadv(self._buffered, [byte], place, os.RWF_NOWAIT)
                for place in (end - 1, offset)
            )
        except OSError:  # not cached, or no such question here; what is wrong, the read itself says
            return False

    def _read_cached(self, offset: int, into: memoryview) -> int:
        """What the page cache has from `offset` on; nothing, unless it seems to have all."""
        if not self.has_cached(offset, len(into)):
            return 0
        try:
            return os.preadv(self._buffered, [into], offset, os.RWF_NOWAIT)
        except OSError:
            return 0

    def close(self) -> None:
        os.close(self._buffered)
        if self._direct is not None:
            os.close(self._direct)


def _fill(descriptor: int, offset: int, into: memoryview) -> int:
    """Read until `into` is full or the file ends."""
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], offset + done)
        done += count
        if count % ALIGNMENT or not count:  # direct I/O goes on at a multiple only
            break
    return done
