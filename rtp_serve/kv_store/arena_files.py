"""Arenas as files in shared memory: made, joined, owned, and removed when nobody has them.

    PREFIX-NAME.pins    goes with the arena, see `pin_file`
    PREFIX-NAME.arena   flock, shared        every member, for as long as it lives
                        flock, exclusive     who removes it
                        lock of byte 0       the one process that owns the index

The system drops a process's locks with the process, however it dies. So an arena that nobody holds
is a dead application's, and the next start removes it. A file gets its name when it is whole and
held. After taking a lock one looks whether the name still means the file that was locked; if not,
one begins again.
"""

import errno
import fcntl
import logging
import mmap
import os
import re
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rtp_serve.errors import ArenaMismatch, ArenaUnavailable
from rtp_serve.kv_cache.memory import take_pages
from rtp_serve.kv_store.arena import Arena
from rtp_serve.kv_store.arena_geometry import (
    EPOCH_OFFSET,
    PREAMBLE_BYTES,
    ArenaGeometry,
    check_equal,
    decode_preamble,
    encode_preamble,
    num_slabs_in,
)
from rtp_serve.kv_store.available_memory import available_bytes
from rtp_serve.kv_store.pin_file import remove_pins

SHARED_MEMORY = Path("/dev/shm")
MIN_ARENA_BYTES = 64 << 20
"""A smaller arena is not worth its threads: a container's default shared memory has this size."""

_PREFIX, _SUFFIX = "rtp_serve-", ".arena"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,192}")
_LOWEST_PRIORITY = 19
_EPOCH = struct.Struct("<Q")
_FLOCK = struct.Struct("@hhqqi0q")
"""The system's `struct flock`: type, whence, start, length, process (0 for a file's lock)."""

_log = logging.getLogger(__name__)


def _free_bytes(directory: Path) -> int:
    """Of the directory's file system, but no more than there is memory for it."""
    status = os.statvfs(directory)
    return min(status.f_bavail * status.f_frsize, available_bytes())


@dataclass(frozen=True, slots=True)
class SharedMemoryIO:
    """The calls that can fail for want of memory, and the one that asks."""

    reserve: Callable[[int, int, int], None] = os.posix_fallocate
    free_bytes: Callable[[Path], int] = _free_bytes


class ArenaMember:
    """One process's part in an arena: the mapping, and the lock that keeps the file."""

    def __init__(self, path: Path, descriptor: int, geometry: ArenaGeometry) -> None:
        """`descriptor` is the member's from now on, and holds the shared lock."""
        self.path = path
        self._descriptor: int | None = descriptor
        self._memory = mmap.mmap(descriptor, geometry.total_bytes)
        self.arena = Arena(self._memory, geometry)

    def own(self) -> int | None:
        """Become the index's owner for good: the new epoch, from 1 on; None if another process is.

        An epoch is given once, so generations that are numbered within it are never repeated.
        """
        assert self._descriptor is not None, f"{self.path} was left"
        try:
            _lock_ownership(self._descriptor, fcntl.F_WRLCK)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None
            raise
        (epoch,) = _EPOCH.unpack_from(self._memory, EPOCH_OFFSET)
        _EPOCH.pack_into(self._memory, EPOCH_OFFSET, epoch + 1)
        return int(epoch) + 1

    def take_pages(self) -> threading.Thread:
        """Bring all pages into this process, on a thread of the lowest priority."""
        thread = threading.Thread(target=self._take_pages, name="kv-arena", daemon=True)
        thread.start()
        return thread

    def _take_pages(self) -> None:
        # On Linux this is the priority of the thread alone.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
        take_pages(self._memory)

    def leave(self) -> None:
        """Give up locks and ownership. The memory stays as long as the arena is referred to."""
        if self._descriptor is not None:
            # The mapping keeps the file open, and with it its locks.
            _lock_ownership(self._descriptor, fcntl.F_UNLCK)
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None


class ArenaFiles:
    """The arenas of one node. Methods raise OSError where the system does, unless they say more."""

    def __init__(self, root: Path = SHARED_MEMORY, io: SharedMemoryIO | None = None) -> None:
        self._root = root
        self._io = io or SharedMemoryIO()

    def path(self, name: str) -> Path:
        """`name` is of the node and the application: letters, digits, dots and dashes."""
        assert _NAME.fullmatch(name), f"{name!r} cannot be an arena's name"
        return self._root / f"{_PREFIX}{name}{_SUFFIX}"

    def num_bytes(self, configured_bytes: int) -> int:
        """How large a new arena is to be, 0 for none: at most half of what is free."""
        free_bytes = self._io.free_bytes(self._root)
        num_bytes = min(configured_bytes, free_bytes // 2)
        if num_bytes >= MIN_ARENA_BYTES:
            return num_bytes
        _log.warning(
            "no KV arena on this node: half of the %d MB that are free in %s, or the %d MB that are"
            " configured, are less than %d MB",
            free_bytes >> 20, self._root, configured_bytes >> 20, MIN_ARENA_BYTES >> 20,
        )  # fmt: skip
        return 0

    def join(self, name: str, slab_bytes: int, layout_digest: bytes, num_bytes: int) -> ArenaMember:
        """Attach to the arena that living members have, or make one of at most `num_bytes`.

        What members left that have all died is removed. Raises ArenaMismatch if the name is taken
        for blocks of another format, ArenaUnavailable if there is no memory or no permission.
        """
        path = self.path(name)
        while True:
            descriptor = _open(path)
            if descriptor is None:
                descriptor = self._make(path, slab_bytes, layout_digest, num_bytes)
                if descriptor is None:
                    continue  # somebody else was faster
            elif not _hold(descriptor, path):
                os.close(descriptor)
                continue
            try:
                preamble = os.pread(descriptor, PREAMBLE_BYTES, 0)
                geometry = decode_preamble(preamble, os.fstat(descriptor).st_size)
                check_equal(geometry, slab_bytes, layout_digest)
                return ArenaMember(path, descriptor, geometry)
            except ArenaMismatch:
                os.close(descriptor)
                raise
            except OSError as error:
                os.close(descriptor)
                raise ArenaUnavailable(f"cannot map the KV arena {path}: {error}") from error

    def remove_unheld(self) -> list[Path]:
        """Remove this user's arenas whose members have all died; those removed."""
        removed = []
        for path in sorted(self._root.glob(f"{_PREFIX}*{_SUFFIX}")):
            with suppress(ArenaUnavailable):  # another user's
                descriptor = _open(path)
                if descriptor is not None:
                    if _remove_if_unheld(descriptor, path):
                        removed.append(path)
                    os.close(descriptor)
        return removed

    def _make(
        self, path: Path, slab_bytes: int, layout_digest: bytes, num_bytes: int
    ) -> int | None:
        """The descriptor of a new arena, held; None if meanwhile there is one.

        The file has no name before it is whole, so a maker that dies leaves nothing behind.
        """
        num_slabs = num_slabs_in(num_bytes, slab_bytes)
        if not num_slabs:
            raise ArenaUnavailable(f"{num_bytes} bytes have no slab of {slab_bytes} bytes")
        geometry = ArenaGeometry(slab_bytes, num_slabs, layout_digest)
        descriptor = None
        try:
            descriptor = os.open(self._root, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            # A page that was not reserved and cannot be had ends the process that touches it.
            self._io.reserve(descriptor, 0, geometry.total_bytes)
            os.pwrite(descriptor, encode_preamble(geometry), 0)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            # Python follows the symbolic link only if it is given a directory, which is not used.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
        except OSError as error:
            if descriptor is not None:
                os.close(descriptor)
            if isinstance(error, FileExistsError):
                return None
            raise ArenaUnavailable(
                f"cannot make a KV arena of {geometry.total_bytes} bytes in {self._root}: {error}"
            ) from error
        return descriptor


def _lock_ownership(descriptor: int, kind: int) -> None:
    """Of the open file, not of the process: it survives another descriptor's closing."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0))


def _open(path: Path) -> int | None:
    """None if there is no such file. Raises ArenaUnavailable for one that is not ours."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArenaUnavailable(f"cannot open the KV arena {path}: {error}") from error
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise ArenaUnavailable(f"the KV arena {path} is another user's")
    return descriptor


def _hold(descriptor: int, path: Path) -> bool:
    """Take the member's lock; False if the file was nobody's, or is no more, and is gone now."""
    if _remove_if_unheld(descriptor, path):
        return False
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return _is_at(descriptor, path)


def _remove_if_unheld(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    if _is_at(descriptor, path):
        remove_pins(path)
        path.unlink()
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still means the file that is open."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    return False
