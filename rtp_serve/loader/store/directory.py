"""The weight store's directory: names, locks, uses, eviction. Knows nothing of what files hold.

    NAME.weights      a finished file, never changed again
    NAME.verified     which boot has checked the payload of NAME.weights
    NAME.corrupt      what was NAME.weights and turned out to be damaged
    .NAME.draft       what a maker is writing; meaningless once the maker is gone
    NAME.source       names the finished file that was made of the checkpoint known as NAME
    NAME.lock         held by the maker; never removed, or two makers could each hold "the" lock;
                      its modification time is the last use of NAME.weights

A mapped file may be unlinked or renamed: whoever has it mapped keeps it.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rtp_serve.loader.cache import cache_root, locked

_FINISHED, _VERIFIED, _CORRUPT, _DRAFT, _SOURCE, _LOCK = (
    ".weights", ".verified", ".corrupt", ".draft", ".source", ".lock"
)  # fmt: skip
_NAME = re.compile("[0-9a-f]{1,64}")
"""What `StoreKey.name` gives; a note of anything else is none."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def default_root() -> Path:
    """In the cache that prepared models are in."""
    return cache_root() / "weights"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A finished file, as the directory shows it."""

    name: str
    path: Path
    num_bytes: int
    written_s: float
    used_s: float


class StoreDirectory:
    """Every method may raise OSError from the file system; a file that is gone is no error."""

    def __init__(self, root: Path, boot_id: str | None = None) -> None:
        """`boot_id` None takes the running system's."""
        self.root = root
        self._boot_id = boot_id

    def finished(self, name: str) -> Path:
        return self.root / f"{name}{_FINISHED}"

    def draft(self, name: str) -> Path:
        return self.root / f".{name}{_DRAFT}"

    @contextmanager
    def maker_lock(self, name: str) -> Iterator[None]:
        """Wait until nobody else makes this file; remove what a killed maker left of it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self._open_lock(name), fcntl.LOCK_EX):
            self.draft(name).unlink(missing_ok=True)
            yield

    def create_draft(self, name: str) -> int:
        """Its descriptor. The caller holds the lock. Everybody may read what becomes of it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(self.draft(name), flags)
        os.fchmod(descriptor, 0o644)
        return descriptor

    def publish(self, name: str) -> None:
        """The draft becomes the finished file, at once and for good."""
        self._marker(name).unlink(missing_ok=True)
        self.draft(name).rename(self.finished(name))
        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def files(self) -> list[StoredFile]:
        """All finished files, the one longest not used first."""
        found = []
        for path in self.root.glob(f"*{_FINISHED}"):
            with suppress(FileNotFoundError):
                status = path.stat()
                name = path.name.removesuffix(_FINISHED)
                written_s = status.st_mtime
                found.append(
                    StoredFile(name, path, status.st_size, written_s, self._used_s(name, written_s))
                )
        return sorted(found, key=lambda file: (file.used_s, file.name))

    def touch(self, name: str, now_s: float) -> None:
        """Note a use."""
        with suppress(FileNotFoundError):
            os.utime(self._lock(name), (now_s, now_s))

    def make_room(self, num_bytes: int, max_bytes: int) -> list[StoredFile]:
        """Remove files, the longest not used first, until `num_bytes` more fit; those removed."""
        files = self.files()
        total = sum(file.num_bytes for file in files) + num_bytes
        removed = []
        for file in files:
            if total <= max_bytes:
                break
            file.path.unlink(missing_ok=True)
            self._marker(file.name).unlink(missing_ok=True)
            total -= file.num_bytes
            removed.append(file)
        return removed

    def quarantine(self, name: str, status: os.stat_result) -> None:
        """Move the file aside, if it still is the one with this status."""
        path = self.finished(name)
        with suppress(FileNotFoundError):
            if path.stat().st_ino == status.st_ino:
                path.rename(self.root / f"{name}{_CORRUPT}")
                self._marker(name).unlink(missing_ok=True)

    def note_source(self, source: str, name: str) -> None:
        """The checkpoint `source` has the weights of this finished file. The caller holds the lock
        of `source`."""
        draft = self.draft(source)
        draft.write_text(name, encoding="ascii")
        draft.rename(self._source(source))

    def made_of(self, source: str) -> str | None:
        """The name of the file that was made of the checkpoint `source`, which may be gone; None
        if nobody knows."""
        return _noted_name(self._source(source))

    def remove_leftovers(self) -> list[Path]:
        """Remove damaged files, drafts whose maker is gone, marks and notes of files that are
        gone."""
        leftovers = list(self.root.glob(f"*{_CORRUPT}"))
        leftovers += [
            path
            for path in self.root.glob(f"*{_VERIFIED}")
            if not self.finished(path.name.removesuffix(_VERIFIED)).exists()
        ]
        for path in self.root.glob(f"*{_SOURCE}"):
            name = _noted_name(path)
            if name is None or not self.finished(name).exists():
                leftovers.append(path)
        for path in leftovers:
            path.unlink(missing_ok=True)
        for path in self.root.glob(f".*{_DRAFT}"):
            lock = self._open_lock(path.name.removeprefix(".").removesuffix(_DRAFT))
            with suppress(BlockingIOError), locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                path.unlink(missing_ok=True)
                leftovers.append(path)
        return leftovers

    def is_verified(self, name: str, status: os.stat_result) -> bool:
        """Whether the payload of the file with this status was checked since the system started."""
        try:
            return self._marker(name).read_text(encoding="ascii") == self._mark(status)
        except (OSError, UnicodeDecodeError):
            return False

    def mark_verified(self, name: str, status: os.stat_result) -> None:
        self._marker(name).write_text(self._mark(status), encoding="ascii")

    def _mark(self, status: os.stat_result) -> str:
        boot_id = self._boot_id or _BOOT_ID.read_text(encoding="ascii").strip()
        return f"{boot_id} {status.st_ino} {status.st_size} {status.st_mtime_ns}\n"

    def _marker(self, name: str) -> Path:
        return self.root / f"{name}{_VERIFIED}"

    def _source(self, name: str) -> Path:
        return self.root / f"{name}{_SOURCE}"

    def _lock(self, name: str) -> Path:
        return self.root / f"{name}{_LOCK}"

    def _open_lock(self, name: str) -> int:
        return os.open(self._lock(name), os.O_RDONLY | os.O_CREAT, 0o644)

    def _used_s(self, name: str, written_s: float) -> float:
        try:
            return self._lock(name).stat().st_mtime
        except FileNotFoundError:  # brought here from elsewhere
            return written_s


def _noted_name(path: Path) -> str | None:
    try:
        name = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return name if _NAME.fullmatch(name) else None
