"""KV memory of a node's ranks that the leader sees too, for the tiers below the device.

The tiers' threads are the leader's. What a follower's steps have written is there when the leader's
own step has ended, for the last sum waits for it; and a follower sees what the leader has filled
when it is told the next step.
"""

import logging
import mmap

from rtp_serve.errors import SharedMemoryUnavailable
from rtp_serve.native.shared_file import SharedFile

_log = logging.getLogger(__name__)


class SharedKV:
    """The memory of each rank, by the name of their session."""

    def __init__(self, session: str, keeps_names: bool = False) -> None:
        """With `keeps_names` other processes of the node find the memory as long as it is held."""
        self._session = session
        self._keeps_names = keeps_names

    def name(self, rank: int) -> str | None:
        """Of the file; None if nobody else is to find it."""
        return self._name(rank) if self._keeps_names else None

    def memory(self, rank: int, num_bytes: int) -> mmap.mmap:
        """Zeros at first, and the same for all who ask. Raises SharedMemoryUnavailable."""
        file = self._file(rank, num_bytes)
        try:
            return mmap.mmap(file.descriptor, num_bytes)
        finally:
            file.close()

    def try_memory(self, rank: int, num_bytes: int) -> mmap.mmap | None:
        """The same; None if there is no room for it, and then nobody finds it."""
        try:
            return self.memory(rank, num_bytes)
        except SharedMemoryUnavailable as error:
            _log.warning("KV blocks are not shared with other processes: %s", error.message)
            self._keeps_names = False
            return None

    def seen(self, rank: int, num_bytes: int) -> memoryview:
        """A follower's memory, as the leader sees it; all who were to find it have."""
        file = self._file(rank, num_bytes)
        try:
            region = memoryview(mmap.mmap(file.descriptor, num_bytes))
            if not self._keeps_names:
                file.forget_name()
            return region
        finally:
            file.close()

    def _file(self, rank: int, num_bytes: int) -> SharedFile:
        return SharedFile(self._name(rank), num_bytes)

    def _name(self, rank: int) -> str:
        return f"{self._session}-kv-{rank}"
