"""A Ray cluster of the launcher's own, which leaves nothing.

Its processes carry a mark in their environment and are waited for; its files are in one directory.
Other clusters of the host are not touched.
"""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import ray

from deployments.environment import MARK

# Control messages are small; tokens and weights never enter the object store.
_OBJECT_STORE_BYTES = 80 << 20
_SHM_SPARE_BYTES = 16 << 20
_EXIT_TIMEOUT_S = 5.0
_POLL_S = 0.05

_ACCESS_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")


class OwnCluster:
    """A Ray instance that lives as long as this process."""

    def __init__(self, directory: Path) -> None:
        """`directory` gets Ray's files; its path must be short."""
        self._directory = directory
        self._mark = f"{MARK}={directory}".encode()

    def start(self) -> None:
        """Blocks for some seconds."""
        ray.init(
            address="local",
            namespace="serve",
            include_dashboard=False,
            log_to_driver="RTP_SERVE_LOG" in os.environ,
            logging_level="warning",
            object_store_memory=_OBJECT_STORE_BYTES,
            _temp_dir=str(self._directory),
            _plasma_directory=None if _has_shared_memory() else str(self._directory),
        )

    def access(self) -> str:
        """The variables with which another process of this user reaches the cluster."""
        variables = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
        variables |= {name: os.environ[name] for name in _ACCESS_VARIABLES if name in os.environ}
        return " ".join(f"{name}={value}" for name, value in variables.items())

    def end_processes(self, hurry: threading.Event) -> None:
        """After `ray.shutdown()`: until no process of the cluster is left; at once in a hurry."""
        self._end_with(signal.SIGTERM, hurry)
        self._end_with(signal.SIGKILL, threading.Event())

    def _end_with(self, number: signal.Signals, hurry: threading.Event) -> None:
        """Signal all processes, and wait until they are gone or `hurry` is set."""
        for pid in self._processes():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        for _ in range(int(_EXIT_TIMEOUT_S / _POLL_S)):
            if not self._processes() or hurry.wait(_POLL_S):
                return

    def _processes(self) -> list[int]:
        """Processes that have inherited our mark, this one excepted."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if self._mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found


def _has_shared_memory() -> bool:
    """Whether the object store fits /dev/shm; Docker gives 64 MB. Elsewhere it is a mapped file."""
    try:
        free = os.statvfs("/dev/shm")
    except OSError:
        return False
    return free.f_bavail * free.f_frsize >= _OBJECT_STORE_BYTES + _SHM_SPARE_BYTES
