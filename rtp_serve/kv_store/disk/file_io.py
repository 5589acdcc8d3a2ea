"""Every call of the disk tier to the operating system, as arguments; tests let any of them fail."""

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rtp_serve.kv_store.disk.pages import PAGE_BYTES

_BYTES_PER_STAT_BLOCK = 512


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What one file takes."""

    num_bytes: int
    """Its length."""

    allocated_bytes: int
    """On the disk, what the filesystem needs to find them included."""


def _status(path: Path) -> FileStatus:
    status = path.stat()
    return FileStatus(status.st_size, status.st_blocks * _BYTES_PER_STAT_BLOCK)


def _lock(descriptor: int) -> None:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@dataclass(frozen=True, slots=True)
class FileIO:
    """Each raises OSError. Buffers, offsets and lengths are whole pages."""

    make_directory: Callable[[Path], None] = _make_directory
    list_names: Callable[[Path], list[str]] = os.listdir
    free_bytes: Callable[[Path], int] = _free_bytes
    open: Callable[[Path, int, int], int] = os.open
    close: Callable[[int], None] = os.close
    lock: Callable[[int], None] = _lock
    status: Callable[[Path], FileStatus] = _status
    reserve: Callable[[int, int, int], None] = os.posix_fallocate
    read: Callable[[int, Sequence[memoryview], int], int] = os.preadv
    write: Callable[[int, Sequence[memoryview], int], int] = os.pwritev
    sync: Callable[[int], None] = os.fdatasync
    sync_directory: Callable[[Path], None] = _sync_directory
    truncate: Callable[[Path, int], None] = os.truncate
    unlink: Callable[[Path], None] = os.unlink


def write_all(io: FileIO, descriptor: int, buffer: memoryview, position: int) -> None:
    """Go on after short writes. Raises OSError."""
    while buffer.nbytes:
        written = io.write(descriptor, [buffer], position)
        if not written:
            raise OSError(errno.EIO, f"nothing of {buffer.nbytes} bytes was written")
        buffer, position = buffer[written:], position + written


def read_up_to(io: FileIO, descriptor: int, into: memoryview, position: int) -> int:
    """Fill `into` as far as the file goes; how many bytes there were. Raises OSError."""
    return read_pages(io, descriptor, [into], position)


def read_pages(io: FileIO, descriptor: int, into: Sequence[memoryview], position: int) -> int:
    """Fill one after the other as far as the file goes; how many bytes. Raises OSError."""
    done, remaining = 0, list(into)
    while remaining:
        count = io.read(descriptor, remaining, position + done)
        done += count
        if not count or count % PAGE_BYTES:  # direct I/O goes on at a page only
            break
        remaining = _behind(remaining, count)
    return done


def _behind(buffers: list[memoryview], count: int) -> list[memoryview]:
    """What remains of them after the first `count` bytes."""
    while buffers and count >= buffers[0].nbytes:
        count -= buffers[0].nbytes
        buffers = buffers[1:]
    return [buffers[0][count:], *buffers[1:]] if count else buffers
