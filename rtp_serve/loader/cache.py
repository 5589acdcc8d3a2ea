"""A directory of prepared models, shared by every process of a node.

Knows nothing of models: an entry is a directory that appears whole or not at all.

    root/models/NAME            a finished entry, never changed again
    root/models/.NAME.work      what its maker is writing; meaningless once the maker is gone
    root/downloads/FILE         a source kept until it has been converted
    root/weights            the weight store, see `loader.store`
    root/locks/NAME.lock        held by the maker; the system releases it when the process dies
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rtp_serve.errors import ConfigError

_VARIABLE = "RTP_SERVE_CACHE"


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """`$RTP_SERVE_CACHE`, else `rtp_serve` in the user's cache directory."""
    for variable, suffix in ((_VARIABLE, ""), ("XDG_CACHE_HOME", "rtp_serve")):
        value = environ.get(variable)
        if value:
            return Path(value).expanduser().absolute() / suffix
    try:
        return Path.home() / ".cache" / "rtp_serve"
    except RuntimeError as error:
        raise ConfigError(f"no home directory for the model cache; set {_VARIABLE}") from error


class Cache:
    """Finished entries by name, and a place to make one that is missing."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def entry(self, name: str) -> Path:
        """Where the entry is, or would be."""
        return self._root / "models" / name

    def download(self, name: str) -> Path:
        """Where a downloaded source is, or would be."""
        return self._root / "downloads" / name

    @contextmanager
    def workspace(self, name: str) -> Iterator[Path]:
        """Wait for the entry's lock, then yield an empty directory that is removed at the end.

        Look again for the entry inside: another process may have made it meanwhile. Raises
        ConfigError if the cache cannot be written.
        """
        with _write_errors():
            self._make_directories()
            lock = self._open_lock(name)
        with locked(lock, fcntl.LOCK_EX):
            work = self._work(name)
            with _write_errors():
                self._remove_abandoned(name)
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _make_directories(self) -> None:
        for name in ("models", "downloads", "locks"):
            (self._root / name).mkdir(parents=True, exist_ok=True)

    def _work(self, name: str) -> Path:
        return self._root / "models" / f".{name}.work"

    def _open_lock(self, name: str) -> int:
        return os.open(self._root / "locks" / f"{name}.lock", os.O_RDONLY | os.O_CREAT, 0o644)

    def _remove_abandoned(self, own: str) -> None:
        """Remove what killed makers of other entries left behind."""
        for work in (self._root / "models").glob(".*.work"):
            name = work.name.removeprefix(".").removesuffix(".work")
            if name == own:
                continue
            try:
                with locked(self._open_lock(name), fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(work, ignore_errors=True)
            except BlockingIOError:
                continue  # its maker is alive


def publish(built: Path, final: Path) -> None:
    """Move a finished file or directory to its place at once; readable by everybody, on disk."""
    files = [path for path in built.rglob("*") if path.is_file()] if built.is_dir() else [built]
    for path in files:
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if built.is_dir():
        built.chmod(0o755)
    built.rename(final)


@contextmanager
def _write_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write the model cache: {error}; set {_VARIABLE} to another directory"
        ) from error


@contextmanager
def locked(lock: int, operation: int) -> Iterator[None]:
    """Hold a file lock and close the file. Raises BlockingIOError if told not to wait."""
    try:
        fcntl.flock(lock, operation)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough: a forked child has it open
    finally:
        os.close(lock)
