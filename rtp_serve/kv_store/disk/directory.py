"""The directory of a disk tier: names, the lock, which files are segments; not what they hold.

    ROOT/owner.lock                  held by the process that writes; never removed
    ROOT/00000000000000000042.segment

Other names are somebody else's: neither read nor counted nor removed.
"""

import errno
import os
import re
from pathlib import Path

from rtp_serve.kv_store.disk.file_io import FileIO
from rtp_serve.kv_store.disk.pages import PAGE_BYTES, allocate

_LOCK = "owner.lock"
_SEGMENT = re.compile(r"([0-9]{20})\.segment")


class DiskDirectory:
    """Paths, and how a segment is opened. Usable by any process; `lock` makes one of them owner."""

    def __init__(self, root: Path, io: FileIO) -> None:
        self.path = root
        self._io = io
        self._is_direct: bool | None = None

    def segment(self, number: int) -> Path:
        return self.path / f"{number:020}.segment"

    def segments(self) -> list[int]:
        """Numbers of all segments, the oldest first. Raises OSError."""
        matches = map(_SEGMENT.fullmatch, self._io.list_names(self.path))
        return sorted(int(match[1]) for match in matches if match is not None)

    def lock(self) -> int:
        """Become the owner until the descriptor is closed or the process dies.

        Raises BlockingIOError if another is; OSError if the directory cannot be made or written.
        """
        self._io.make_directory(self.path)
        path = self.path / _LOCK
        descriptor = self._io.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._io.lock(descriptor)
            self._io.truncate(path, PAGE_BYTES)  # a hole, for `is_direct` to read
        except OSError:
            self._io.close(descriptor)
            raise
        return descriptor

    def open_segment(self, number: int, flags: int) -> int:
        """Past the page cache where the filesystem can, else through it. Raises OSError."""
        if self._is_direct is None:
            self._is_direct = self._reads_directly(self.path / _LOCK)
        direct = os.O_DIRECT if self._is_direct else 0
        return self._io.open(self.segment(number), flags | os.O_CLOEXEC | direct, 0o644)

    def _reads_directly(self, path: Path) -> bool:
        """Some filesystems say no when a file is opened, others when it is read."""
        try:
            descriptor = self._io.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT, 0o644)
            try:
                self._io.read(descriptor, [allocate(PAGE_BYTES)], 0)
            finally:
                self._io.close(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True
