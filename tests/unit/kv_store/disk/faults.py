"""Disks that stop, fill up or break."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rtp_serve.kv_store.disk.file_io import FileIO

CHANGES = ("make_directory", "reserve", "write", "sync", "sync_directory", "truncate", "unlink")
"""Calls after which a disk may look different."""


class Killed(BaseException):
    """The process is gone: nothing of it runs any more."""


class MortalIO:
    """The owner dies with its `dies_at`th change of the disk, half of which is done if it can be.

    As `os.fdatasync` makes no difference to a killed process, none is made.
    """

    def __init__(self, dies_at: int | None = None, *, is_torn: bool = False) -> None:
        self.dies_at = dies_at
        self.num_changes = 0
        self._is_torn = is_torn
        self._descriptors: set[int] = set()
        real = FileIO(sync=lambda _: None, sync_directory=lambda _: None)
        self.io = replace(
            real,
            open=self._open,
            close=self._close,
            **{name: self._mortal(name, getattr(real, name)) for name in CHANGES},
        )

    def _mortal(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def change(*args: Any) -> Any:
            self.num_changes += 1
            if self.num_changes == self.dies_at:
                if self._is_torn and name == "write":
                    descriptor, buffers, position = args
                    half = buffers[0].nbytes // 2 // 4096 * 4096
                    if half:
                        os.pwritev(descriptor, [buffers[0][:half]], position)
                self.die()
            return call(*args)

        return change

    def die(self) -> None:
        """What the system does for a process that is killed."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()
        raise Killed

    def _open(self, path: Path, flags: int, mode: int) -> int:
        descriptor = os.open(path, flags, mode)
        self._descriptors.add(descriptor)
        return descriptor

    def _close(self, descriptor: int) -> None:
        self._descriptors.discard(descriptor)
        os.close(descriptor)


class FailingIO:
    """Calls of some names fail with `errno` as long as it is set."""

    def __init__(self, names: Sequence[str], errno: int | None = None) -> None:
        self.errno = errno
        self.num_failures = 0
        real = FileIO()
        self.io = replace(real, **{name: self._failing(getattr(real, name)) for name in names})

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def perhaps(*args: Any) -> Any:
            if self.errno is not None:
                self.num_failures += 1
                raise OSError(self.errno, os.strerror(self.errno))
            return call(*args)

        return perhaps
