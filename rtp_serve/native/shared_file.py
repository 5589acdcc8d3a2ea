"""Files by whose names the processes of a node find their shared memory, and then forget them.

Whoever comes first makes the file, whole and zero, before it has its name; whoever comes last
removes the name. A shared lock lives as long as somebody has the memory mapped, however that ends;
so a file that nobody holds was left by processes that died before all had come, and the next one
that makes a file removes it.
"""

import fcntl
import mmap
import os
import re
from contextlib import suppress
from pathlib import Path

from rtp_serve.errors import SharedMemoryUnavailable

SHARED_MEMORY = Path("/dev/shm")

_PREFIX, _SUFFIX = "rtp_serve-", ".shared"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,192}")


class SharedFile:
    """One process's hold on a file of shared memory, until it is mapped."""

    def __init__(self, name: str, num_bytes: int, root: Path = SHARED_MEMORY) -> None:
        """Open the file of this name, or make it with `num_bytes`.

        `name`: letters, digits, dots and dashes; of this group of processes alone. Raises
        SharedMemoryUnavailable where there is no room or no permission.
        """
        assert _NAME.fullmatch(name), f"{name!r} cannot be a name in shared memory"
        self.path = root / f"{_PREFIX}{name}{_SUFFIX}"
        try:
            self.descriptor = _open_or_make(self.path, num_bytes)
        except OSError as error:
            raise SharedMemoryUnavailable(
                f"cannot share {num_bytes} bytes as {self.path}: {error}"
            ) from error
        self._identity = os.fstat(self.descriptor)

    def close(self) -> None:
        """The lock stays with the mapping, if there is one."""
        os.close(self.descriptor)

    def forget_name(self) -> None:
        """Nobody finds the file any more; those who have it keep it."""
        _unlink(self.path, self._identity)


def map_for_reading(name: str, num_bytes: int, root: Path = SHARED_MEMORY) -> mmap.mmap:
    """The memory that another process has made and holds, which stays while it is mapped here.

    `name` may come from anywhere. Raises SharedMemoryUnavailable if there is no such file, nobody
    holds it, or it has another length.
    """
    if not _NAME.fullmatch(name):
        raise SharedMemoryUnavailable(f"{name!r} cannot be a name in shared memory")
    path = root / f"{_PREFIX}{name}{_SUFFIX}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise SharedMemoryUnavailable(f"cannot map {path}: {error}") from error
    try:
        if _remove_if_unheld(descriptor, path):
            raise SharedMemoryUnavailable(f"{path} was left by a process that died")
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        found = os.fstat(descriptor)
        if found.st_size != num_bytes or not _is_at(found, path):
            raise SharedMemoryUnavailable(
                f"{path} has {found.st_size} bytes, not {num_bytes}, or was replaced"
            )
        return mmap.mmap(descriptor, num_bytes, prot=mmap.PROT_READ)
    except OSError as error:
        raise SharedMemoryUnavailable(f"cannot map {path}: {error}") from error
    finally:
        os.close(descriptor)


def forget_name(name: str, root: Path = SHARED_MEMORY) -> None:
    """Nobody finds the file any more that this process has made so; idempotent."""
    (root / f"{_PREFIX}{name}{_SUFFIX}").unlink(missing_ok=True)


def _open_or_make(path: Path, num_bytes: int) -> int:
    while True:
        descriptor = _open_held(path)
        if descriptor is None:
            descriptor = _make(path, num_bytes)
        if descriptor is not None:
            return descriptor


def _open_held(path: Path) -> int | None:
    """None if there is no such file, or none that anybody holds."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    if _remove_if_unheld(descriptor, path):
        os.close(descriptor)
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if _is_at(os.fstat(descriptor), path):
        return descriptor
    os.close(descriptor)
    return None


def _make(path: Path, num_bytes: int) -> int | None:
    """None if meanwhile somebody else has."""
    _remove_unheld(path.parent)
    descriptor = os.open(path.parent, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    try:
        # A page that was not reserved and cannot be had ends the process that touches it.
        os.posix_fallocate(descriptor, 0, num_bytes)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        # Python follows the symbolic link only if it is given a directory, which is not used.
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
    except FileExistsError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_unheld(root: Path) -> None:
    """This user's files that dead processes left."""
    for path in root.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(FileNotFoundError, PermissionError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            _remove_if_unheld(descriptor, path)
            os.close(descriptor)


def _remove_if_unheld(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    _unlink(path, os.fstat(descriptor))
    return True


def _unlink(path: Path, identity: os.stat_result) -> None:
    if _is_at(identity, path):
        path.unlink(missing_ok=True)


def _is_at(identity: os.stat_result, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(identity, path.stat(follow_symlinks=False))
    return False
